"""XenStore of a simulated host: tree, permissions, quotas, transactions, watches, domains."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.dom0 import tree
from simulator.dom0.nodes import Permission, XenStoreError, grown
from simulator.dom0.tree import Device, Domain
from simulator.dom0.xenstore import GUEST_NODES, GUEST_VALUE_BYTES, GUEST_WATCHES, XenStore

GUEST = 5
HOME = f"/local/domain/{GUEST}"
VIF = Device("vif", "vif", 0, (("mac", "aa:bb"),), (("mac", "aa:bb"), ("bridge", "xenbr0")))
DISK = Device("vbd", "vbd3", 51712, (("device-type", "disk"),), (("mode", "w"),))
DOMAIN = Domain(
    domid=GUEST,
    vm_uuid="0f3c",
    name="web-1",
    unique_id="u-1",
    vcpus=2,
    memory=(("static-max", 1024), ("target", 512)),
    data=(("vm-data/hostname", "web-1"), ("vm-data/a.b", "refused"), ("FIST/x", "y")),
    devices=(VIF, DISK),
)


class Told:
    """Collects what a watch reports."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def __call__(self, path: str, token: str) -> None:
        self.events.append((path, token))

    def take(self) -> list[str]:
        paths = [path for path, _token in self.events]
        self.events.clear()
        return paths


@pytest.fixture
def store() -> XenStore:
    store = XenStore()
    tree.begin_dom0(store, "d0", 1024)
    return store


@pytest.fixture
def guest(store: XenStore) -> XenStore:
    tree.begin(store, DOMAIN)
    return store


def refusal(work: Callable[..., object], *args: object, **kwargs: object) -> str:
    with pytest.raises(XenStoreError) as caught:
        work(*args, **kwargs)
    return caught.value.code


# -- the tree


def test_a_written_value_is_read_back_and_its_parents_exist(store: XenStore) -> None:
    store.write("/a/b/c", b"\x00\xff text")
    assert store.read("/a/b/c") == b"\x00\xff text"
    assert store.read("/a/b") == b""
    assert store.directory("/a") == ["b"]


def test_children_are_listed_in_the_order_they_were_made(store: XenStore) -> None:
    for name in ("z", "a", "m"):
        store.write(f"/o/{name}", "")
    store.write("/o/a", "again")
    assert store.directory("/o") == ["z", "a", "m"]


def test_a_missing_node_is_told_from_an_empty_one(store: XenStore) -> None:
    store.mkdir("/empty")
    assert store.get("/empty") == ""
    assert store.get("/missing") is None
    assert refusal(store.read, "/missing") == "ENOENT"
    assert refusal(store.directory, "/missing") == "ENOENT"
    assert not store.exists("/missing")
    assert store.tree("/missing") == {}


def test_mkdir_leaves_a_node_that_exists_alone(store: XenStore) -> None:
    store.write("/a", "value")
    store.mkdir("/a")
    assert store.get("/a") == "value"


def test_removing_takes_everything_below(store: XenStore) -> None:
    store.write("/a/b/c", "1")
    store.rm("/a")
    assert not store.exists("/a/b/c")


def test_removing_a_missing_leaf_succeeds_and_below_a_missing_parent_fails(store: XenStore) -> None:
    store.write("/a/b", "1")
    store.rm("/a/missing")
    assert refusal(store.rm, "/missing/leaf") == "ENOENT"
    assert refusal(store.rm, "/") == "EINVAL"


@pytest.mark.parametrize(
    "path", ["", "/a//b", "/a/", "/a.b", "/a:b", "/a b", "/a%", "//", "/ä", "@x", "/" + "p" * 3072]
)
def test_a_path_with_other_characters_is_refused(store: XenStore, path: str) -> None:
    for work in (store.read, store.directory, store.mkdir, store.rm):
        assert refusal(work, path) == "EINVAL"


def test_path_and_value_together_fill_one_message_at_most(store: XenStore) -> None:
    path = "/data/x"
    store.write(path, "v" * (4096 - len(path) - 1))
    assert refusal(store.write, path, "v" * (4096 - len(path))) == "E2BIG"
    assert refusal(store.update, {path: "v" * (4096 - len(path))}) == "E2BIG"


def test_a_relative_path_begins_at_the_folder_of_who_asks(guest: XenStore) -> None:
    assert guest.read("name") == b"Domain-0"
    assert guest.read("name", who=GUEST) == b"web-1"
    guest.write("data/x", "1", who=GUEST)
    assert guest.get(f"{HOME}/data/x") == "1"


def test_an_update_does_all_or_nothing(store: XenStore) -> None:
    store.write("/a/old", "1")
    assert refusal(store.update, {"/a/new": "2", "/a/old": None, "/bad path": "3"}) == "EINVAL"
    assert store.tree("/a") == {"old": "1"}
    store.update({"/a/old": None, "/a/new": "2", "/a/deep/er": b"\xff"}, ["n5", "r6"])
    assert store.tree("/a") == {"new": "2", "deep": "", "deep/er": "\N{REPLACEMENT CHARACTER}"}
    assert store.get_permissions("/a/new") == (Permission("n", 5), Permission("r", 6))
    store.update({"/missing/one": None})


def test_a_planted_folder_replaces_what_was_there(store: XenStore) -> None:
    store.write("/a/old", "1")
    store.plant("/a", grown({"new": "2", "new/er": "3"}, (Permission("n", 0),), {"new": (Permission("b", 7),)}))
    assert store.tree("/a") == {"new": "2", "new/er": "3"}
    assert store.get_permissions("/a/new/er") == (Permission("b", 7),)


# -- permissions and quotas


def test_dom0_may_do_everything_and_a_guest_what_it_owns(guest: XenStore) -> None:
    guest.write(f"{HOME}/data/mine", "1", who=GUEST)
    assert guest.get_permissions(f"{HOME}/data/mine")[0] == Permission("n", GUEST)
    assert guest.read(f"{HOME}/data/mine") == b"1"
    assert refusal(guest.write, f"{HOME}/memory/target", "9", who=GUEST) == "EACCES"
    assert refusal(guest.rm, HOME, who=GUEST) == "EACCES"
    assert guest.read("memory/target", who=GUEST) == b"512"


def test_another_guest_neither_reads_nor_writes(guest: XenStore) -> None:
    assert refusal(guest.read, f"{HOME}/data", who=6) == "EACCES"
    assert refusal(guest.write, f"{HOME}/data/x", "", who=6) == "EACCES"
    assert refusal(guest.read, f"{HOME}/missing", who=6) == "EACCES"
    assert refusal(guest.set_permissions, f"{HOME}/data", ["b6"], who=6) == "EACCES"


@pytest.mark.parametrize(("letter", "may"), [("n", ""), ("r", "read"), ("w", "write"), ("b", "read write")])
@pytest.mark.parametrize("who", ["named", "anybody"])
def test_letters_say_what_a_domain_may_do(store: XenStore, letter: str, may: str, who: str) -> None:
    store.write("/shared", "1")
    store.set_permissions("/shared", ["n0", f"{letter}6"] if who == "named" else [f"{letter}0"])
    asked: dict[str, Callable[[], object]] = {
        "read": partial(store.read, "/shared", who=6),
        "write": partial(store.write, "/shared", "", who=6),
    }
    for name, work in asked.items():
        if name in may:
            work()
        else:
            assert refusal(work) == "EACCES"


@pytest.mark.parametrize("wish", [[], ["x1"], ["n"], ["n-1"], ["n0", "r²"]])
def test_nonsense_is_no_permission(store: XenStore, wish: list[str]) -> None:
    store.write("/a", "")
    assert refusal(store.set_permissions, "/a", wish) == "EINVAL"


def test_a_guest_has_quotas_that_dom0_does_not_have(guest: XenStore) -> None:
    guest.write("data/x", "v" * GUEST_VALUE_BYTES, who=GUEST)
    assert refusal(guest.write, "data/x", "v" * (GUEST_VALUE_BYTES + 1), who=GUEST) == "E2BIG"
    number = 0
    with contextlib.suppress(XenStoreError):
        while True:
            guest.write(f"data/n{number}", "", who=GUEST)
            number += 1
    assert GUEST_NODES - 50 < number < GUEST_NODES
    guest.rm("data/n0", who=GUEST)
    guest.write("data/again", "", who=GUEST)
    assert refusal(guest.write, "data/more", "", who=GUEST) == "EQUOTA"
    guest.write("data/n1", "a value", who=GUEST)
    guest.write(f"{HOME}/data/from-dom0", "")


def test_a_folder_given_away_counts_for_its_new_owner(guest: XenStore) -> None:
    for number in range(GUEST_NODES):
        guest.write(f"/gift/{number}", "")
        guest.set_permissions(f"/gift/{number}", [f"n{GUEST}"])
    assert refusal(guest.write, "data/x", "", who=GUEST) == "EQUOTA"
    guest.rm("/gift")
    guest.write("data/x", "", who=GUEST)


def test_watches_and_transactions_of_a_guest_are_bounded(guest: XenStore) -> None:
    told = Told()
    for number in range(GUEST_WATCHES):
        guest.watch(f"data/{number}", "t", told, who=GUEST)
    assert refusal(guest.watch, "data/x", "t", told, who=GUEST) == "EQUOTA"
    for _number in range(10):
        guest.start(who=GUEST)
    assert refusal(guest.start, who=GUEST) == "EQUOTA"
    guest.start()
    guest.release(GUEST)
    guest.start(who=GUEST)
    guest.watch("data/x", "t", told, who=GUEST)


# -- transactions


def test_a_transaction_is_seen_by_itself_only_until_it_ends(store: XenStore) -> None:
    store.write("/a", "old")
    number = store.start()
    store.write("/a", "new", transaction=number)
    store.write("/b/c", "made", transaction=number)
    assert store.read("/a", transaction=number) == b"new"
    assert (store.get("/a"), store.get("/b")) == ("old", None)
    store.end(number)
    assert (store.get("/a"), store.get("/b/c")) == ("new", "made")
    assert refusal(store.end, number) == "ENOENT"
    assert refusal(store.read, "/a", transaction=number) == "ENOENT"


def test_an_abandoned_transaction_changes_nothing(store: XenStore) -> None:
    number = store.start()
    store.write("/a", "new", transaction=number)
    store.end(number, commit=False)
    assert not store.exists("/a")


@pytest.mark.parametrize(
    "meanwhile",
    [
        lambda store: store.write("/a", "other"),
        lambda store: store.rm("/a"),
        lambda store: store.set_permissions("/a", ["b0"]),
        lambda store: store.write("/a/child", ""),
    ],
)
def test_a_transaction_that_read_what_changed_must_be_repeated(
    store: XenStore, meanwhile: Callable[[XenStore], None]
) -> None:
    store.write("/a", "old")
    number = store.start()
    store.read("/a", transaction=number)
    store.write("/result", "x", transaction=number)
    meanwhile(store)
    assert refusal(store.end, number) == "EAGAIN"
    assert not store.exists("/result")


def test_a_transaction_beside_a_change_elsewhere_succeeds(store: XenStore) -> None:
    store.write("/a", "old")
    number = store.start()
    store.write("/a", store.read("/a", transaction=number) + b"!", transaction=number)
    store.write("/elsewhere", "1")
    store.end(number)
    assert (store.get("/a"), store.get("/elsewhere")) == ("old!", "1")


def test_a_transaction_over_quota_does_nothing(guest: XenStore) -> None:
    number = guest.start(who=GUEST)
    for index in range(GUEST_NODES + 1):
        guest.write(f"data/{index}", "", who=GUEST, transaction=number)
    assert refusal(guest.end, number) == "EQUOTA"
    assert guest.directory(f"{HOME}/data") == []


def test_counters_of_many_threads_lose_nothing(store: XenStore) -> None:
    store.write("/count", "0")

    def count() -> None:
        for _turn in range(50):
            while True:
                number = store.start()
                store.write("/count", str(int(store.read("/count", transaction=number)) + 1), transaction=number)
                with contextlib.suppress(XenStoreError):
                    store.end(number)
                    break

    threads = [threading.Thread(target=count) for _index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert store.get("/count") == "200"


# -- watches


def test_a_watch_speaks_at_once_and_at_every_change_at_or_below(store: XenStore) -> None:
    told = Told()
    store.write("/a/b", "1")
    watch = store.watch("/a", "tok", told)
    assert told.events == [("/a", "tok")]
    told.events.clear()
    store.write("/a/b", "1")
    store.mkdir("/a/c/d")
    store.mkdir("/a/c/d")
    store.set_permissions("/a/b", ["b0"])
    store.rm("/a/missing")
    store.write("/b", "")
    assert told.take() == ["/a/b", "/a/c/d", "/a/b"]
    store.unwatch(watch)
    store.unwatch(watch)
    store.write("/a/b", "2")
    assert told.take() == []


def test_removing_or_replacing_a_folder_tells_the_watches_below_it(store: XenStore) -> None:
    told, above = Told(), Told()
    store.write("/a/b/c", "1")
    store.watch("/a/b/c", "t", told)
    store.watch("/a/b/not-yet", "t", told)
    store.watch("/", "t", above)
    told.take()
    above.take()
    store.rm("/a")
    assert sorted(told.take()) == ["/a/b/c", "/a/b/not-yet"]
    assert above.take() == ["/a"]
    store.plant("/a", grown({"b": "", "b/c": "2"}, (Permission("n", 0),), {}))
    assert sorted(told.take()) == ["/a/b/c", "/a/b/not-yet"]


def test_a_transaction_tells_watches_when_it_ends(store: XenStore) -> None:
    told = Told()
    store.watch("/a", "t", told)
    told.take()
    number = store.start()
    store.write("/a/x", "1", transaction=number)
    assert told.take() == []
    store.end(number)
    assert told.take() == ["/a/x"]


def test_a_guest_hears_of_what_it_may_read_by_the_names_it_used(guest: XenStore) -> None:
    told = Told()
    guest.watch("data", "t", told, who=GUEST)
    guest.watch("/local", "all", told, who=GUEST)
    told.take()
    guest.write(f"{HOME}/data/host/1", "x")
    guest.write("/local/secret", "x")
    assert sorted(told.take()) == [f"{HOME}/data/host/1", "data/host/1"]


def test_domains_that_come_and_go_are_announced(store: XenStore) -> None:
    told = Told()
    store.watch("@introduceDomain", "i", told)
    store.watch("@releaseDomain", "r", told)
    told.take()
    tree.begin(store, DOMAIN)
    assert told.take() == ["@introduceDomain"]
    assert store.is_introduced(GUEST)
    tree.end(store, DOMAIN)
    store.release(GUEST)
    assert told.take() == ["@releaseDomain"]
    assert not store.is_introduced(GUEST)


def test_a_watch_may_write_and_hears_of_it_in_order(store: XenStore) -> None:
    seen: list[str] = []

    def answer(path: str, _token: str) -> None:
        seen.append(path)
        if path == "/ask":
            store.write("/watched/answer", "1")

    store.watch("/ask", "a", answer)
    store.watch("/watched", "b", answer)
    seen.clear()
    store.write("/ask", "?")
    assert seen == ["/ask", "/watched/answer"]


# -- what the toolstack writes


def test_a_new_domain_has_what_tools_look_for(guest: XenStore) -> None:
    assert guest.get(f"{HOME}/name") == "web-1"
    assert guest.get(f"{HOME}/vm") == "/vm/0f3c"
    assert guest.get("/vm/0f3c/uuid") == "0f3c"
    assert guest.get(f"/vm/0f3c/domains/{GUEST}") == HOME
    assert guest.tree(f"{HOME}/memory") == {"static-max": "1024", "target": "512"}
    assert guest.tree(f"{HOME}/vm-data") == {"hostname": "web-1"}
    assert guest.get(f"{HOME}/FIST/x") == "y"
    assert guest.directory(f"{HOME}/cpu") == ["0", "1"]
    for folder in tree.GUEST_FOLDERS:
        guest.write(f"{folder}/x", "1", who=GUEST)
    back = guest.get(f"{HOME}/device/vif/0/backend")
    assert back == f"/local/domain/0/backend/vif/{GUEST}/0"
    assert guest.get(f"{back}/frontend") == f"{HOME}/device/vif/0"


def test_devices_and_memory_follow_a_living_domain(guest: XenStore) -> None:
    changed = Domain(
        **{name: getattr(DOMAIN, name) for name in ("domid", "vm_uuid", "name", "unique_id", "vcpus", "data")},
        memory=(("static-max", 1024), ("target", 768)),
        devices=(DISK,),
    )
    tree.change(guest, DOMAIN, changed)
    assert guest.directory(f"{HOME}/device/vif") == []
    assert guest.directory(f"/local/domain/0/backend/vif/{GUEST}") == []
    assert guest.get(f"{HOME}/device/vbd/51712/device-type") == "disk"
    assert guest.get(f"{HOME}/memory/target") == "768"


def test_nothing_is_left_of_a_domain_that_ended(guest: XenStore) -> None:
    guest.write("data/x", "1", who=GUEST)
    tree.end(guest, DOMAIN)
    fresh = XenStore()
    tree.begin_dom0(fresh, "d0", 1024)
    left = {path for path in guest.tree("/") if not path.startswith("local/domain/0/backend/")}
    assert left == set(fresh.tree("/"))
    tree.begin(guest, DOMAIN)
    for number in range(GUEST_NODES - 50):
        guest.write(f"data/{number}", "", who=GUEST)


@pytest.mark.parametrize(
    ("position", "number"), [(0, 51712), (1, 51728), (15, 51952), (16, 268439552), (27, 268442368)]
)
def test_disks_have_the_numbers_of_their_names(position: int, number: int) -> None:
    assert tree.disk_number(position) == number


# -- against a model

_names = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(lambda names: "/m/" + "/".join(names))
_steps = st.lists(st.tuples(st.sampled_from(["write", "mkdir", "rm"]), _names, st.text("xy", max_size=2)), max_size=30)


@given(steps=_steps, snapshot_at=st.integers(0, 30))
def test_the_tree_equals_a_dictionary_whether_copied_or_changed_in_place(
    steps: list[tuple[str, str, str]], snapshot_at: int
) -> None:
    store = XenStore()
    store.mkdir("/m")
    model = {"/m": ""}
    snapshot: tuple[int, dict[str, str]] | None = None
    for index, (kind, path, value) in enumerate(steps):
        if index == snapshot_at:
            snapshot = store.start(), dict(model)
        parents = ["/".join(path.split("/")[:length]) for length in range(2, path.count("/") + 1)]
        if kind == "rm":
            try:
                store.rm(path)
            except XenStoreError:
                assert parents[-1] not in model
            model = {key: kept for key, kept in model.items() if key != path and not key.startswith(path + "/")}
            continue
        for parent in parents:
            model.setdefault(parent, "")
        if kind == "write":
            store.write(path, value)
            model[path] = value
        else:
            store.mkdir(path)
            model.setdefault(path, "")
    assert {f"/{path}": value for path, value in store.tree("/").items()} == model
    if snapshot is not None:
        number, before = snapshot
        assert {path: store.read(path, transaction=number).decode() for path in before} == before
