import seamscope.activations as room


def test_the_room_offers_exactly_its_public_names():
    assert set(room.__all__) == {
        "FORMAT_VERSION",
        "SHARDS",
        "Background",
        "Schema",
        "Shards",
        "Store",
        "StoreWriter",
        "create_store",
        "export_store",
        "finished_shards",
        "fitting_rows_per_shard",
        "is_whole",
        "join_stores",
        "open_store",
        "planned_rows_per_shard",
        "to_host",
    }
    assert all(hasattr(room, name) for name in room.__all__)
