import seamscope.probes as room


def test_the_room_offers_exactly_its_public_names():
    assert set(room.__all__) == {
        "PER_ITEM",
        "LinearProbe",
        "bootstrap_interval",
        "paired_bootstrap_interval",
        "probe_grid",
        "summarise",
    }
    assert all(hasattr(room, name) for name in room.__all__)
