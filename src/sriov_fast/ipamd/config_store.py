"""The configuration in the store: immutable documents, and the root record that names the active one."""

from __future__ import annotations

import asyncio
import uuid
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import orjson

from sriov_fast.ipamd.config import Config
from sriov_fast.ipamd.errors import Conflict, OtherRevision, Unavailable, owner_text
from sriov_fast.ipamd.model import parse
from sriov_fast.ipamd.schema import NO_ROOT, ROOT, RecordKeys, pack, unpack
from sriov_fast.ipamd.snapshot import Snapshot, nets, pools_of
from sriov_fast.ipamd.store import Store, Transaction, View, prefix_end

PART = 512 * 1024  # bytes of a document in one record; etcd takes 1.5 MiB a request
PAGE = 1000  # records in one read
NAMED = 5  # allocations in one error
TRIES = 20

Check = Callable[[Transaction], Awaitable[None]]


def token() -> str:
    """Return a unique name."""
    return uuid.uuid4().hex


def _document(name: str) -> tuple[str, str]:
    prefix = f"document/{name}/"
    return prefix, prefix_end(prefix)


class ConfigStore:
    """Reads and replaces the active configuration."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._snapshot: Snapshot | None = None
        self._loading = asyncio.Lock()

    async def snapshot(self) -> Snapshot:
        """Return the cached configuration; transactions compare its root."""
        return self._snapshot or await self.reload()

    async def reload(self, known: Snapshot | None = None) -> Snapshot:
        """Return the active configuration; the cached one if that is newer than `known`."""
        async with self._loading:
            if known is not None and self._snapshot is not None and self._snapshot.root != known.root:
                return self._snapshot
            for _ in range(TRIES):
                snapshot = await self._store.read(self._read)
                if snapshot is not None:
                    self._snapshot = snapshot
                    return snapshot
        raise Unavailable("config: changes faster than it can be read")

    async def _read(self, view: View) -> Snapshot | None:
        """Return the configuration; None after a concurrent replacement."""
        (found,), _ = await view.fetch([ROOT])
        root = found or NO_ROOT
        if self._snapshot is not None and self._snapshot.root == root:
            return self._snapshot
        return await read_snapshot(view, root)

    async def prepare(
        self, config: Config, idents: Mapping[str, str], epochs: Mapping[str, str]
    ) -> dict[str, Any]:
        """Write an inactive configuration; return its part of the root record."""
        body = {"config": config.document(), "idents": dict(idents), "epochs": dict(epochs)}
        packed = zlib.compress(orjson.dumps(body))
        name = token()
        parts = [
            (f"{_document(name)[0]}{number:06d}", packed[at : at + PART])
            for number, at in enumerate(range(0, len(packed), PART))
        ]
        await self._store.write(parts)
        return {"document": name, "parts": len(parts)}

    async def forget(self, name: str) -> None:
        """Delete an inactive configuration."""
        if name:
            await self._store.wipe(*_document(name))

    async def activate(self, old: Snapshot, says: dict[str, Any], check: Check | None) -> bool:
        """Write the root record of a prepared configuration; False if the old one was not active.

        `check` belongs to the transaction, and refuses the change with a `Conflict`.
        """

        async def swap(tx: Transaction) -> bool:
            (root,), _ = await tx.fetch([ROOT])
            if root is not None and unpack(root) == says:
                return True  # the commit of an earlier attempt succeeded
            if (root or NO_ROOT) != old.root:
                return False
            if check is not None:
                await check(tx)
            tx.changes[ROOT] = pack(says)
            return True

        try:
            done = await self._store.run(swap)
        except Conflict:  # after other errors the new one may be active
            await self.forget(says["document"])
            raise
        if not done:
            await self.forget(says["document"])
        return done

    async def edit(self, change: Callable[[Config], Config], revision: str | None) -> Snapshot:
        """Change the configuration of this revision (None: of any), again after concurrent changes."""
        for _ in range(TRIES):
            old = await self.reload()
            if revision not in (None, str(old.revision)):
                raise OtherRevision(
                    f'If-Match: "{revision}": the configuration is at revision "{old.revision}"'
                )
            config = change(old.config)
            idents = keep_idents(old, config)
            gone = [it for it in old.idents.values() if it not in idents.values()]
            named = await self.prepare(config, idents, new_epochs(old, config, idents))
            says = {"revision": old.revision + 1, "generation": old.generation, **named}
            if await self.activate(old, says, partial(_require_unused, old, gone)):
                return await self._clean(old, gone)
        raise Unavailable("config: others change it all the time")

    async def _clean(self, old: Snapshot, gone: list[str]) -> Snapshot:
        """Delete the records of the old configuration, and return the new one."""
        await self.forget(old.document)
        keys = RecordKeys(old.generation)
        for ident in gone:
            for kind in ("addr", "free", "lane", "sticky"):
                await self._store.wipe(*keys.kind(kind, ident))
        return await self.reload()


async def read_snapshot(view: View, root: bytes) -> Snapshot | None:
    """Return the configuration that a root names; None if it was deleted."""
    says = unpack(root)
    config, idents, epochs = Config(), {}, {}
    if says["document"]:
        _, (rows,) = await view.fetch([], [(*_document(says["document"]), 0)])
        if len(rows) != says["parts"]:
            return None
        body = orjson.loads(zlib.decompress(b"".join(part for _, part in rows)))
        config, idents, epochs = parse(Config, body["config"]), body["idents"], body["epochs"]
    indexed = nets(config, idents, epochs)
    return Snapshot(root, says["revision"], says["generation"], says["document"], config, idents, indexed)


def new_epochs(old: Snapshot, config: Config, idents: Mapping[str, str]) -> dict[str, str]:
    """Return the epochs of the pools: a pool with the same addresses as before keeps its epoch."""
    before = {space.ident: space for space in pools_of(old.nets)}
    new = str(old.revision + 1)
    return {
        space.pool.name: was.epoch if (was := before.get(space.ident)) and was.same(space) else new
        for space in pools_of(nets(config, idents))
    }


def keep_idents(old: Snapshot, config: Config) -> dict[str, str]:
    """Return the pools' names in the store: a new network or subnet makes a new pool."""
    before = {it.name: (it.network, it.subnet) for it in old.config.pools}
    return {
        it.name: old.idents[it.name] if before.get(it.name) == (it.network, it.subnet) else token()
        for it in config.pools
    }


async def _require_unused(old: Snapshot, idents: Sequence[str], tx: Transaction) -> None:
    """Refuse a change under which an allocation would lose its pool."""
    held = [name for ident in idents for name in await _held(old, ident, tx)]
    if held:
        raise Conflict(
            f"config: pools that would go, or change network or subnet, are in use: {', '.join(held)}"
        )


async def _held(old: Snapshot, ident: str, tx: Transaction) -> list[str]:
    """Return some allocations of a pool; the commit fails if another is added."""
    first, end = RecordKeys(old.generation).kind("addr", ident)
    tx.unchanged(first, end)
    pool = next(name for name, it in old.idents.items() if it == ident)
    found: list[str] = []
    while len(found) < NAMED:
        _, (rows,) = await tx.fetch([], [(first, end, PAGE)])
        for record in (unpack(value) for _, value in rows):
            if "owner" in record:
                network, container_id, ifname = record["owner"]
                found.append(f"pool {pool!r} by {owner_text(container_id, ifname)} in {network!r}")
        if len(rows) < PAGE:
            break
        first = rows[-1][0] + "\x00"
    return found[:NAMED]
