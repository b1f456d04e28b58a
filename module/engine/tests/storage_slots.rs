// SPDX-License-Identifier: GPL-2.0-only

//! The slot table against a plain map.

use std::collections::{BTreeMap, BTreeSet};

use presnap_engine::region::{IndexEntry, SlotKind};
use presnap_engine::slots::{SlotEntry, SlotError, SlotTable, GROUP_SLOTS};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Alloc { want: u32, fill: bool, snapshot: u32, block: u64 },
    Insert { slot: u32, snapshot: u32, block: u64, manifest: bool },
    Free { slot: u32 },
    FreeSnapshot { snapshot: u32, steps: u32 },
    Reassign { slot: u32, snapshot: u32 },
    Grow { total: u32, most: u32 },
}

/// Entries behind those in use at first.
const SPARE: u32 = 70;

fn ops(total: u32) -> impl Strategy<Value = Vec<Op>> {
    let (snapshot, block, slot) = (1u32..6, 0u64..40, 0..total + 2);
    let op = prop_oneof![
        4 => (0u32..20, any::<bool>(), snapshot.clone(), block.clone())
            .prop_map(|(want, fill, snapshot, block)| Op::Alloc { want, fill, snapshot, block }),
        2 => (slot.clone(), 0u32..6, block, any::<bool>())
            .prop_map(|(slot, snapshot, block, manifest)| Op::Insert { slot, snapshot, block, manifest }),
        6 => slot.clone().prop_map(|slot| Op::Free { slot }),
        1 => (snapshot.clone(), 0..total + 9).prop_map(|(snapshot, steps)| Op::FreeSnapshot { snapshot, steps }),
        1 => (slot, snapshot).prop_map(|(slot, snapshot)| Op::Reassign { slot, snapshot }),
        1 => (total..total + SPARE + 9, 0u32..4).prop_map(|(total, most)| Op::Grow { total, most }),
    ];
    prop::collection::vec(op, 1..200)
}

struct Model {
    total: u32,
    memory: u32,
    used: BTreeMap<u32, IndexEntry>,
    reserved: BTreeSet<u32>,
}

impl Model {
    fn is_free(&self, slot: u32) -> bool {
        slot < self.total && !self.used.contains_key(&slot) && !self.reserved.contains(&slot)
    }

    fn has(&self, snapshot: u32, block: u64) -> bool {
        self.used
            .values()
            .any(|e| e.kind == SlotKind::Data && e.snapshot == snapshot && e.block == block)
    }

    fn whole_group(&self) -> bool {
        (0..self.total / GROUP_SLOTS)
            .any(|g| (g * GROUP_SLOTS..(g + 1) * GROUP_SLOTS).all(|slot| self.is_free(slot)))
    }

    fn expected_insert(&self, slot: u32, e: &IndexEntry) -> Result<(), SlotError> {
        if slot >= self.total {
            Err(SlotError::NoSlot)
        } else if self.used.contains_key(&slot) {
            Err(SlotError::State)
        } else if e.snapshot == 0 {
            Err(SlotError::Value)
        } else if e.kind == SlotKind::Data && self.has(e.snapshot, e.block) {
            Err(SlotError::Duplicate)
        } else {
            Ok(())
        }
    }
}

type Table = SlotTable<Vec<SlotEntry>, Vec<u32>>;

fn insert(t: &mut Table, m: &mut Model, slot: u32, e: IndexEntry) -> Result<(), TestCaseError> {
    let expected = m.expected_insert(slot, &e);
    prop_assert_eq!(t.insert(slot, e.snapshot, e.block, e.kind, e.crc), expected);
    if expected.is_ok() {
        m.reserved.remove(&slot);
        m.used.insert(slot, e);
    }
    Ok(())
}

fn apply(t: &mut Table, m: &mut Model, op: Op) -> Result<(), TestCaseError> {
    match op {
        Op::Alloc { want, fill, snapshot, block } => {
            let asked = want.clamp(1, GROUP_SLOTS);
            let Some((slot, length)) = t.alloc_run(want) else {
                prop_assert_eq!(m.used.len() + m.reserved.len(), m.total as usize);
                return Ok(());
            };
            prop_assert!((1..=asked).contains(&length));
            prop_assert_eq!(slot / GROUP_SLOTS, (slot + length - 1) / GROUP_SLOTS);
            prop_assert!(length == asked || !m.whole_group());
            for slot in slot..slot + length {
                prop_assert!(m.is_free(slot));
                m.reserved.insert(slot);
            }
            if fill {
                for i in 0..length {
                    let block = block + u64::from(i);
                    let e = IndexEntry { block, kind: SlotKind::Data, snapshot, crc: slot };
                    insert(t, m, slot + i, e)?;
                }
            }
        }
        Op::Insert { slot, snapshot, block, manifest } => {
            let kind = if manifest { SlotKind::Manifest } else { SlotKind::Data };
            insert(t, m, slot, IndexEntry { block, kind, snapshot, crc: !slot })?;
        }
        Op::Free { slot } => {
            prop_assert_eq!(t.free(slot), m.used.remove(&slot));
            m.reserved.remove(&slot);
        }
        Op::FreeSnapshot { snapshot, steps } => {
            let mut cursor = 0;
            let freed = t.free_snapshot_step(snapshot, &mut cursor, steps);
            prop_assert_eq!(cursor, steps.min(m.total));
            let before = m.used.len();
            m.used.retain(|&slot, e| slot >= cursor || e.snapshot != snapshot);
            prop_assert_eq!(freed as usize, before - m.used.len());
        }
        Op::Grow { total, most } => {
            let end = total.min(m.memory);
            let done = t.grow(total, most);
            let groups = m.total / GROUP_SLOTS + most;
            if m.total < end && most > 0 {
                m.total = (groups * GROUP_SLOTS).min(end);
            }
            prop_assert_eq!((t.total(), done), (m.total, m.total >= end));
        }
        Op::Reassign { slot, snapshot } => {
            let expected = match m.used.get(&slot) {
                None if slot >= m.total => Err(SlotError::NoSlot),
                None => Err(SlotError::State),
                Some(e)
                    if e.kind == SlotKind::Data
                        && e.snapshot != snapshot
                        && m.has(snapshot, e.block) =>
                {
                    Err(SlotError::Duplicate)
                }
                Some(_) => Ok(()),
            };
            prop_assert_eq!(t.reassign(slot, snapshot), expected);
            if expected.is_ok() {
                m.used.get_mut(&slot).unwrap().snapshot = snapshot;
            }
        }
    }
    Ok(())
}

fn compare(t: &Table, m: &Model) -> Result<(), TestCaseError> {
    prop_assert_eq!(t.used() as usize, m.used.len() + m.reserved.len());
    for slot in 0..m.total {
        prop_assert_eq!(t.entry(slot), m.used.get(&slot).copied());
    }
    for block in 0..60 {
        let holders: BTreeMap<u32, u32> = m
            .used
            .iter()
            .filter(|(_, e)| e.kind == SlotKind::Data && e.block == block)
            .map(|(&slot, e)| (e.snapshot, slot))
            .collect();
        for snapshot in 0..7 {
            prop_assert_eq!(t.lookup(snapshot, block), holders.get(&snapshot).copied());
            let next = holders.range(snapshot..).next().map(|(&snapshot, &slot)| (snapshot, slot));
            prop_assert_eq!(t.lookup_at_or_after(snapshot, block), next);
        }
    }
    Ok(())
}

fn run(total: u32, buckets: usize, ops: Vec<Op>) -> Result<(), TestCaseError> {
    let memory = total + SPARE;
    let entries = vec![SlotEntry::ZERO; memory as usize];
    let mut t = SlotTable::new(entries, vec![0; buckets], total).unwrap();
    let mut m = Model { total, memory, used: BTreeMap::new(), reserved: BTreeSet::new() };
    for op in ops {
        apply(&mut t, &mut m, op)?;
    }
    compare(&t, &m)?;
    // No free slot is ever lost, and none is handed out twice.
    while let Some((slot, 1)) = t.alloc_run(1) {
        prop_assert!(m.is_free(slot));
        m.reserved.insert(slot);
    }
    prop_assert_eq!(t.used(), m.total);
    compare(&t, &m)
}

proptest! {
    #[test]
    fn behaves_like_a_map(
        (total, ops) in (0u32..100).prop_flat_map(|total| (Just(total), ops(total))),
        buckets in 1usize..30,
    ) {
        run(total, buckets, ops)?;
    }
}
