// SPDX-License-Identifier: GPL-2.0-only

//! Opening a region: a good one, changed here and there, is read from superblock to data as kernel and tools do it.
//!
//! An input is a list of changes: a unit of the region (a superblock, a root, ...), an offset, a byte that says how wide
//! the value is and what is put right after it, and the value. Another structure of the region is another [`Unit`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::sync::OnceLock;

use presnap_check::{check, Fault, Medium, Options};
use presnap_engine::manifest::chain_crc;
use presnap_engine::region::root::{MAX_SNAPSHOTS, ROOT_BYTES, SNAPSHOT_BYTES};
use presnap_engine::region::{Copy2, IndexEntry};

use super::{index, manifest, root};
use crate::bytes::{get_u32, mend, put_u32, Input};
use crate::recover::{recover, Blocks, Recovered, BLOCK};
use crate::sample;

/// A structure with a checksum of its own.
#[derive(Clone, Copy)]
struct Unit {
    first: u64,
    blocks: u64,
    /// Where its checksum lies, if it has one.
    crc_at: Option<usize>,
}

struct Good {
    bytes: Vec<u8>,
    units: Vec<Unit>,
    /// The manifest's pages of each snapshot, as blocks of the region.
    pages: Vec<Vec<u64>>,
    roots: [u64; 2],
}

fn good() -> &'static Good {
    static GOOD: OnceLock<Good> = OnceLock::new();
    GOOD.get_or_init(|| {
        let bytes = sample::region();
        let r = recover(&bytes[..]).expect("the sample is good");
        assert_eq!((r.root.len(), r.damaged(&bytes[..])), (3, vec![]));
        let l = r.layout;
        let mut units = Vec::new();
        for copy in [Copy2::A, Copy2::B] {
            units.push(Unit { first: l.superblock_block(copy), blocks: 1, crc_at: Some(12) });
            units.push(Unit { first: l.root_block(copy), blocks: 8, crc_at: Some(12) });
            for no in 0..l.index_blocks {
                let first = l.index_copy_block(no, copy);
                units.push(Unit { first, blocks: 1, crc_at: Some(24) });
            }
        }
        let mut pages = Vec::new();
        for record in r.root.iter() {
            let (chunks, slots) = r.manifest(&bytes[..], record).expect("a good manifest");
            let slots: Vec<u64> = slots.iter().map(|&s| l.slot_block(s)).collect();
            units.extend(slots.iter().map(|&first| Unit { first, blocks: 1, crc_at: Some(20) }));
            let data = chunks.iter().filter(|c| !c.is_zero()).map(|c| l.slot_block(c.slot));
            units.extend(data.take(1).map(|first| Unit { first, blocks: 1, crc_at: None }));
            pages.push(slots);
        }
        Good { bytes, units, pages, roots: [Copy2::A, Copy2::B].map(|c| l.root_block(c)) }
    })
}

/// The good region with some blocks changed.
struct Changed {
    good: &'static Good,
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl Blocks for Changed {
    fn count(&self) -> u64 {
        self.good.bytes.count()
    }

    fn block(&self, no: u64) -> Option<&[u8]> {
        self.blocks.get(&no).map(Vec::as_slice).or_else(|| self.good.bytes.block(no))
    }
}

impl Changed {
    fn unit(&self, unit: Unit) -> Vec<u8> {
        self.run(unit.first, unit.blocks).expect("a unit of the region")
    }

    fn store(&mut self, first: u64, bytes: &[u8]) {
        for (no, block) in (first..).zip(bytes.chunks_exact(BLOCK)) {
            self.blocks.insert(no, block.to_vec());
        }
    }

    fn change(&mut self, input: &mut Input<'_>) {
        let Some(which) = usize::from(input.u8()).checked_rem(self.good.units.len()) else {
            return;
        };
        let unit = self.good.units[which];
        let mut bytes = self.unit(unit);
        let (at, how) = (usize::from(input.u16()) % bytes.len(), input.u8());
        let width = [1, 2, 4, 8][usize::from(how & 3)];
        input.fill(&mut bytes[at..], width);
        if let (Some(crc_at), true) = (unit.crc_at, how & 0x80 == 0) {
            mend(&mut bytes, crc_at);
        }
        self.store(unit.first, &bytes);
        if how & 0x40 != 0 {
            self.mend_manifests();
        }
    }

    /// Puts the checksums of the manifests, in both roots, to what the pages say.
    fn mend_manifests(&mut self) {
        for first in self.good.roots {
            let mut bytes = self.run(first, 8).expect("a root");
            for (i, pages) in self.good.pages.iter().enumerate() {
                let crc = pages.iter().fold(0, |crc, &page| {
                    chain_crc(crc, get_u32(self.block(page).unwrap_or_default(), 20))
                });
                let record = ROOT_BYTES - (MAX_SNAPSHOTS - i) * SNAPSHOT_BYTES;
                put_u32(&mut bytes, record + 20, crc);
            }
            mend(&mut bytes, 12);
            self.store(first, &bytes);
        }
    }
}

/// What an accepted region must be.
fn sound(region: &Changed, r: &Recovered) {
    let limits = r.limits();
    assert!(r.superblock.region_blocks <= region.count());
    root::sound(&r.root, &limits);
    let mut slots = index::table(r.layout.slots);
    let used: Vec<(u32, IndexEntry)> = r.entries.iter().map(|(slot, e)| (*slot, *e)).collect();
    index::load(&mut slots, &used);
    assert!(slots.used() as usize <= used.len());
    for record in r.root.iter() {
        let Ok((chunks, pages)) = r.manifest(region, record) else { continue };
        assert_eq!(chunks.len() as u64, u64::from(record.manifest_chunks));
        assert_eq!(pages.len() as u64, u64::from(record.manifest_pages));
        let mut end = 0;
        for chunk in &chunks {
            manifest::sound(chunk, end, &limits);
            end = chunk.start_block + u64::from(chunk.length_blocks);
            if !chunk.is_zero() {
                // All of it can be read.
                let len = chunk.length_blocks as usize * BLOCK;
                assert_eq!(r.content(region, chunk).len(), len);
            }
        }
    }
    let damaged = r.damaged(region);
    assert!(damaged.iter().all(|&id| r.root.find(id).is_some()));
}

/// The changed region, to be written to.
struct Disk<'a> {
    region: &'a Changed,
    written: RefCell<BTreeMap<u64, Vec<u8>>>,
}

impl Medium for Disk<'_> {
    fn blocks(&self) -> u64 {
        self.region.count()
    }

    fn read(&self, block: u64, out: &mut [u8]) -> io::Result<()> {
        let written = self.written.borrow();
        for (no, place) in (block..).zip(out.chunks_exact_mut(BLOCK)) {
            let bytes = written.get(&no).map(Vec::as_slice).or_else(|| self.region.block(no));
            place.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        }
        Ok(())
    }

    fn write(&self, block: u64, data: &[u8]) -> io::Result<()> {
        let blocks = data.chunks_exact(BLOCK).map(<[u8]>::to_vec);
        self.written.borrow_mut().extend((block..).zip(blocks));
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// What a repair must do: nothing if there is nothing to repair; once is enough; and what was accepted still is, with
/// the snapshots that were good.
fn repair(region: &Changed, accepted: bool, drop_damaged: bool) {
    let disk = Disk { region, written: RefCell::default() };
    let options = Options { data: true, drop_damaged, live: false };
    let look = |disk: &Disk<'_>| check(disk, options, &mut |_, _, _| {});
    let Ok(checked) = look(&disk) else {
        assert!(!accepted, "refused by the check alone");
        return;
    };
    let faults = checked.report.faults.clone();
    checked.repair(&disk).expect("memory does not fail");
    let written = !disk.written.borrow().is_empty();
    assert_eq!(written, faults.iter().any(Fault::repairable), "{faults:?}");
    let again = look(&disk).map(|checked| checked.report.faults).unwrap_or_else(|e| panic!("{e}"));
    assert!(!again.iter().any(Fault::repairable), "{faults:?} then {again:?}");
    if !accepted || !written {
        return;
    }
    let mut blocks = region.blocks.clone();
    blocks.extend(disk.written.into_inner());
    let after = Changed { good: region.good, blocks };
    let now = recover(&after).unwrap_or_else(|e| panic!("{e} after the repair of {faults:?}"));
    let before = recover(region).expect("it was accepted");
    let (bad, bad_now) = (before.damaged(region), now.damaged(&after));
    assert!(bad_now.iter().all(|id| bad.contains(id)), "{bad:?} then {bad_now:?}: {faults:?}");
}

pub(crate) fn run(data: &[u8]) {
    let mut region = Changed { good: good(), blocks: BTreeMap::new() };
    let mut input = Input::new(data);
    for _ in 0..8 {
        if input.is_empty() {
            break;
        }
        region.change(&mut input);
    }
    let accepted = recover(&region);
    for drop_damaged in [false, true] {
        repair(&region, accepted.is_ok(), drop_damaged);
    }
    match accepted {
        Ok(r) => {
            sound(&region, &r);
            if r.root.header.check_room().is_ok() {
                let limits = r.limits();
                root::goes_on(r.root, r.root_copy, &limits);
            }
        }
        Err(words) => crate::bytes::says(words),
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let units = good().units.len() as u8;
    let mut out = vec![Vec::new()];
    // Each unit, with and without a good checksum; then some that refer to each other.
    for unit in 0..units {
        out.push(vec![unit, 40, 0, 0x40, 1]);
        out.push(vec![unit, 16, 0, 0x83, 9, 9, 9, 9, 9, 9, 9, 9]);
    }
    // A snapshot that is dropped, and a slot that two say is theirs.
    let both = [9, 255, 1, 131, 9, 9, 9, 9, 9, 9, 9, 9, 15, 40, 0, 64, 1, 1, 40, 0, 64, 0];
    out.push([&both[..], &[191, 40, 0, 64, 3]].concat());
    out.push([&[0, 48, 0, 3, 255, 0, 0, 0, 0, 0, 0, 0][..], &[1, 40, 0, 3, 0, 1, 0, 0]].concat());
    out
}
