// SPDX-License-Identifier: GPL-2.0-only

//! What a delta consists of: the chunks of one snapshot, or the union of several, newest content first.

use std::collections::BTreeMap;

use anyhow::{bail, Result};
use presnap_engine::manifest::Chunk;
use presnap_engine::region::root::SNAPSHOT_SUPERSET;
use presnap_engine::region::SnapshotRecord;

use crate::store::Store;

/// A run of blocks that is taken from one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// First block.
    pub(crate) start: u64,
    /// Number of blocks.
    pub(crate) length: u32,
    /// The chunk that it is a part of, or all of.
    pub(crate) chunk: Chunk,
}

impl Piece {
    /// Whether it is all of its chunk.
    pub(crate) fn is_whole(&self) -> bool {
        self.length == self.chunk.length_blocks
    }

    /// The slot of its first block, if it is not zero.
    pub(crate) fn slot(&self) -> u32 {
        // The piece lies in the chunk, so the difference is below its length, and the manifest reader has checked that
        // all of the chunk's slots exist.
        self.chunk.slot.saturating_add((self.start - self.chunk.start_block) as u32)
    }
}

/// The snapshots whose deltas lead from `base` to `id`, oldest first.
pub(crate) fn chain(store: &Store, base: u32, id: u32) -> Result<Vec<SnapshotRecord>> {
    if base >= id {
        bail!("--base {base} is not older than snapshot {id}");
    }
    let mut out = Vec::new();
    let mut at = id;
    while at != base {
        let record = match store.find_sealed(at) {
            Ok(record) => *record,
            Err(e) if at == id => return Err(e),
            Err(e) => bail!("a delta from {base} to {id} needs snapshot {at}, too: {e}"),
        };
        out.push(record);
        match record.base_id {
            0 => bail!(
                "snapshot {at} has no base (it is the first, or the changes before it are not known): a delta from {base} to {id} cannot be made, send it in full"
            ),
            next if next < base => bail!(
                "snapshot {base} is no base of {id}: the delta of {at} is relative to {next}"
            ),
            next => at = next,
        }
    }
    out.reverse();
    Ok(out)
}

/// Whether the delta of a chain may hold more than was written.
pub(crate) fn is_superset(chain: &[SnapshotRecord]) -> bool {
    chain.iter().any(|r| r.flags & SNAPSHOT_SUPERSET != 0)
}

/// The blocks of a chain of deltas, in ascending order, each from the newest chunk that has it.
pub(crate) fn union(manifests_newest_first: &[Vec<Chunk>]) -> Vec<Piece> {
    // Disjoint runs that are taken already: start and end.
    let mut taken: BTreeMap<u64, u64> = BTreeMap::new();
    let mut out = Vec::new();
    for manifest in manifests_newest_first {
        let first = out.len();
        for chunk in manifest {
            let end = chunk.start_block + u64::from(chunk.length_blocks);
            let mut at = chunk.start_block;
            while at < end {
                // The run that covers `at`, or the next one after it.
                let covering = taken.range(..=at).next_back().filter(|(_, &e)| e > at);
                if let Some((_, &covered_to)) = covering {
                    at = covered_to;
                    continue;
                }
                let next = taken.range(at..).next().map_or(end, |(&s, _)| s.min(end));
                out.push(Piece { start: at, length: (next - at) as u32, chunk: *chunk });
                at = next;
            }
        }
        for p in &out[first..] {
            taken.insert(p.start, p.start + u64::from(p.length));
        }
    }
    out.sort_unstable_by_key(|p| p.start);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(start_block: u64, length_blocks: u32, slot: u32) -> Chunk {
        Chunk { start_block, length_blocks, slot, ..Chunk::default() }
    }

    #[test]
    fn newest_content_wins() {
        let newest = vec![chunk(10, 5, 100), chunk(20, 1, 200)];
        let older = vec![chunk(8, 10, 300), chunk(20, 1, 400), chunk(30, 2, 500)];
        let got: Vec<_> =
            union(&[newest, older]).iter().map(|p| (p.start, p.length, p.slot())).collect();
        assert_eq!(got, [(8, 2, 300), (10, 5, 100), (15, 3, 307), (20, 1, 200), (30, 2, 500)]);
    }

    #[test]
    fn agrees_with_a_map_of_blocks() {
        let mut seed = 1u64;
        let mut random = |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % n
        };
        for _ in 0..300 {
            let mut manifests = Vec::new();
            let mut slot = 0;
            for _ in 0..4 {
                let mut manifest = Vec::new();
                let mut at = random(5);
                while at < 60 {
                    let length = 1 + random(9) as u32;
                    manifest.push(chunk(at, length, slot));
                    slot += length;
                    at += u64::from(length) + random(8);
                }
                manifests.push(manifest);
            }
            let mut model = BTreeMap::new();
            for c in manifests.iter().rev().flatten() {
                for i in 0..c.length_blocks {
                    model.insert(c.start_block + u64::from(i), c.slot + i);
                }
            }
            let mut got = BTreeMap::new();
            let pieces = union(&manifests);
            assert!(pieces.windows(2).all(|w| w[0].start + u64::from(w[0].length) <= w[1].start));
            for p in pieces {
                for i in 0..p.length {
                    got.insert(p.start + u64::from(i), p.slot() + i);
                }
            }
            assert_eq!(got, model);
        }
    }
}
