import seamscope.activations as room


def test_the_room_offers_exactly_its_public_names():
    assert set(room.__all__) == {
        "FORMAT_VERSION",
        "Schema",
        "Store",
        "StoreWriter",
        "create_store",
        "open_store",
    }
    assert all(hasattr(room, name) for name in room.__all__)
