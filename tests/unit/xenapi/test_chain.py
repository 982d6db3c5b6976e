"""Chains of VHDs, read from VDI records."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from worker.xenapi.vdi import Chain


def rec(uuid: str, parent: str | None = None, snapshot_of: str = "OpaqueRef:NULL") -> dict[str, Any]:
    return {
        "uuid": uuid,
        "sm_config": {"vhd-parent": parent} if parent else {},
        "is_a_snapshot": snapshot_of != "OpaqueRef:NULL",
        "snapshot_of": snapshot_of,
    }


# root <- base <- leaf, and the leaf's snapshot beside it; `other` hangs on the root.
SR = {
    "ref-root": rec("root"),
    "ref-base": rec("base", "root"),
    "ref-leaf": rec("leaf", "base"),
    "ref-snap": rec("snap", "base", snapshot_of="ref-leaf"),
    "ref-other": rec("other", "root"),
    "ref-orphan": rec("orphan", "not-here"),
}


def test_a_chain_knows_parents_ancestors_children_and_depth() -> None:
    chain = Chain(SR)
    assert chain.parent_of("leaf") == "base"
    assert chain.parent_of("root") is None
    assert chain.ancestors("leaf") == ["base", "root"]
    assert chain.ancestors("root") == []
    assert sorted(chain.children("base")) == ["leaf", "snap"]
    assert sorted(chain.children("root")) == ["base", "other"]
    assert chain.children("leaf") == []


def test_nodes_are_reached_by_uuid() -> None:
    chain = Chain(SR)
    assert "leaf" in chain
    assert "not-here" not in chain
    assert chain.ref_of("leaf") == "ref-leaf"
    assert chain.rec_of("leaf") is SR["ref-leaf"]
    assert chain.has_ref("ref-leaf")
    assert not chain.has_ref("leaf")


def test_a_parent_that_is_not_in_the_records_is_still_an_ancestor() -> None:
    chain = Chain(SR)
    assert chain.parent_of("orphan") == "not-here"
    assert chain.ancestors("orphan") == ["not-here"]
    assert chain.parent_of("not-here") is None


def test_a_loop_ends() -> None:
    chain = Chain({"1": rec("a", "b"), "2": rec("b", "a")})
    assert chain.ancestors("a") == ["b", "a"]


@given(parents=st.lists(st.integers(0, 30), min_size=1, max_size=30))
def test_parents_and_children_agree(parents: list[int]) -> None:
    """Node n hangs on a node before it, or on none."""
    recs = {f"ref-{n}": rec(f"{n}", f"{parent % n}" if n and parent else None) for n, parent in enumerate(parents)}
    chain = Chain(recs)
    for n in range(len(parents)):
        node = f"{n}"
        parent = chain.parent_of(node)
        if parent is None:
            assert chain.ancestors(node) == []
        else:
            assert node in chain.children(parent)
            assert chain.ancestors(node) == [parent, *chain.ancestors(parent)]
        assert all(chain.parent_of(child) == node for child in chain.children(node))
