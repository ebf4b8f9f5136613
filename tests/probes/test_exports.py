import seamscope.probes as room


def test_the_room_offers_exactly_its_public_names():
    assert set(room.__all__) == {
        "PER_ITEM",
        "Directions",
        "Eraser",
        "EraserFitter",
        "Lens",
        "LinearProbe",
        "LogitLens",
        "TokenRanks",
        "TunedLens",
        "bootstrap_interval",
        "bootstrap_intervals",
        "control_labels",
        "exceeds",
        "false_discovery",
        "fit_direction",
        "fit_eraser",
        "fit_tuned_lens",
        "groups_of",
        "lens_ranks",
        "load_tuned_lens",
        "median_interval",
        "pair_contrast",
        "paired_bootstrap_interval",
        "probe_features",
        "probe_grid",
        "probe_pair",
        "probe_transfer",
        "random_eraser",
        "side_by_side",
        "summarise",
        "summarise_transfer",
        "token_ranks",
    }
    assert all(hasattr(room, name) for name in room.__all__)
