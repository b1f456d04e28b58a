// SPDX-License-Identifier: GPL-2.0-only

//! Every kind of damage: found, and repaired or left; a repair that is cut off anywhere; random damage.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;

use presnap_check::{check, Checked, Fault, Medium, Options, Refused, BLOCK};
use presnap_engine::crc32c::crc32c;
use presnap_engine::region::index::{INDEX_BYTES, INDEX_ENTRIES};
use presnap_engine::region::intent::{ExtentRun, LogRecord, INTENT_MAP_BYTES, LOG_RECORD_BYTES};
use presnap_engine::region::root::{
    OP_RESERVE, ROOT_AFTER_CRASH, ROOT_BYTES, ROOT_CLEAN, ROOT_FULL_NEEDED,
};
use presnap_engine::region::{
    region_tag, Copy2, Extents, IndexBlock, IndexEntry, IntentMap, Layout, Scope, SlotKind,
    SnapshotState,
};
use presnap_fuzz::hostile::Forger;
use presnap_fuzz::recover::{recover, Recovered};
use presnap_fuzz::sample;

/// Something that was done to a medium.
#[derive(Clone)]
enum Did {
    Write(u64, Vec<u8>),
    Flush,
}

/// A region in memory, that keeps a record of what is done to it.
struct Memory {
    bytes: RefCell<Vec<u8>>,
    did: RefCell<Vec<Did>>,
}

impl Memory {
    fn new(bytes: &[u8]) -> Self {
        Self { bytes: RefCell::new(bytes.to_vec()), did: RefCell::new(Vec::new()) }
    }
}

impl Medium for Memory {
    fn blocks(&self) -> u64 {
        (self.bytes.borrow().len() / BLOCK) as u64
    }

    fn read(&self, block: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes.borrow();
        let at = block as usize * BLOCK;
        let from = bytes.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(from);
        Ok(())
    }

    fn write(&self, block: u64, data: &[u8]) -> io::Result<()> {
        put(&mut self.bytes.borrow_mut(), block, data);
        self.did.borrow_mut().push(Did::Write(block, data.to_vec()));
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.did.borrow_mut().push(Did::Flush);
        Ok(())
    }
}

fn put(bytes: &mut [u8], block: u64, data: &[u8]) {
    bytes[block as usize * BLOCK..][..data.len()].copy_from_slice(data);
}

const DATA: Options = Options { data: true, drop_damaged: false, live: false };
const DROP: Options = Options { drop_damaged: true, ..DATA };

fn look(medium: &Memory, options: Options) -> Result<Checked, Refused> {
    check(medium, options, &mut |_, _, _| {})
}

fn faults(bytes: &[u8], options: Options) -> Vec<Fault> {
    look(&Memory::new(bytes), options)
        .map_or_else(|refused| panic!("refused: {refused}"), |checked| checked.report.faults)
}

/// What a repair does, and what it leaves.
fn repaired(bytes: &[u8], options: Options) -> (Vec<u8>, Vec<Did>, Vec<Fault>) {
    let medium = Memory::new(bytes);
    let checked = look(&medium, options).expect("a region");
    let faults = checked.report.faults.clone();
    checked.repair(&medium).expect("memory does not fail");
    (medium.bytes.into_inner(), medium.did.into_inner(), faults)
}

/// The content of all snapshots, by number and block; those that are damaged are left out.
fn contents(bytes: &[u8]) -> BTreeMap<u32, BTreeMap<u64, Vec<u8>>> {
    let r = recover(bytes).expect("a region");
    let bad = r.damaged(bytes);
    let sealed = r.root.iter().filter(|s| s.state == SnapshotState::Sealed);
    let mut out = BTreeMap::new();
    for record in sealed.filter(|s| !bad.contains(&s.id)) {
        let mut blocks = BTreeMap::new();
        for chunk in r.manifest(bytes, record).expect("a manifest").0 {
            let content = r.content(bytes, &chunk);
            blocks.extend((chunk.start_block..).zip(content.chunks(BLOCK).map(<[u8]>::to_vec)));
        }
        out.insert(record.id, blocks);
    }
    out
}

/// What image `id` reads from the region: the oldest copy from its snapshot on.
fn image(r: &Recovered, bytes: &[u8], id: u32) -> BTreeMap<u64, Vec<u8>> {
    let mut oldest: BTreeMap<u64, (u32, u32)> = BTreeMap::new();
    for (&slot, e) in &r.entries {
        let sealed = r.root.find(e.snapshot).is_some();
        if e.kind == SlotKind::Data && e.snapshot >= id && sealed {
            let place = oldest.entry(e.block).or_insert((e.snapshot, slot));
            *place = (*place).min((e.snapshot, slot));
        }
    }
    let content = |slot| bytes[r.layout.slot_block(slot) as usize * BLOCK..][..BLOCK].to_vec();
    oldest.into_iter().map(|(block, (_, slot))| (block, content(slot))).collect()
}

/// The images that the region has, and what they read.
fn images(bytes: &[u8]) -> BTreeMap<u32, BTreeMap<u64, Vec<u8>>> {
    let r = recover(bytes).expect("a region");
    let scope = r.root.iter().filter(|s| s.scope == Scope::Image);
    scope.map(|s| (s.id, image(&r, bytes, s.id))).collect()
}

/// A good region to be damaged.
struct Good {
    bytes: Vec<u8>,
    r: Recovered,
}

impl Good {
    /// Three snapshots; the second one has an image.
    fn with_image() -> Self {
        Self::of(sample::region())
    }

    fn of(bytes: Vec<u8>) -> Self {
        let r = recover(&bytes[..]).expect("a good region");
        assert_eq!(faults(&bytes, DATA), []);
        Self { bytes, r }
    }

    /// None of them has one.
    fn without_image() -> Self {
        let mut g = Self::with_image();
        g.root(|root| root.find_mut(2).expect("a snapshot").scope = Scope::Delta);
        Self::of(g.bytes)
    }

    /// Changes the current root in place.
    fn root(
        &mut self,
        change: impl FnOnce(
            &mut presnap_engine::region::Root<Vec<presnap_engine::region::SnapshotRecord>>,
        ),
    ) {
        change(&mut self.r.root);
        let mut bytes = vec![0; ROOT_BYTES];
        self.r.root.encode_into(bytes.first_chunk_mut().expect("32 KiB"));
        put(&mut self.bytes, self.r.layout.root_block(self.r.root_copy), &bytes);
    }

    fn crashed(mut self) -> Self {
        self.root(|root| root.header.flags &= !ROOT_CLEAN);
        self
    }

    fn flip(mut self, block: u64, byte: usize) -> Self {
        self.bytes[block as usize * BLOCK + byte] ^= 4;
        self
    }

    fn noise(mut self, block: u64, blocks: usize) -> Self {
        fastrand::Rng::with_seed(block)
            .fill(&mut self.bytes[block as usize * BLOCK..][..blocks * BLOCK]);
        self
    }

    /// Both copies of an index block, as the entries are, or as they are changed.
    fn index(&mut self, no: u32) {
        let first = self.r.layout.index_first_slot(no);
        for (copy, seq) in [(Copy2::A, 90), (Copy2::B, 91)] {
            let entries = (first..first + INDEX_ENTRIES)
                .map(|slot| self.r.entries.get(&slot).copied().unwrap_or(IndexEntry::FREE));
            let mut block = [0; INDEX_BYTES];
            IndexBlock::encode(&mut block, region_tag(&sample::UUID), no, seq, entries);
            put(&mut self.bytes, self.r.layout.index_copy_block(no, copy), &block);
        }
    }

    fn entry(&mut self, slot: u32, entry: Option<IndexEntry>) {
        match entry {
            Some(e) => self.r.entries.insert(slot, e),
            None => self.r.entries.remove(&slot),
        };
        self.index(self.r.layout.index_block(slot).0);
    }

    fn slot_of(&self, snapshot: u32, block: u64) -> u32 {
        let mine =
            |e: &IndexEntry| e.kind == SlotKind::Data && e.snapshot == snapshot && e.block == block;
        *self.r.entries.iter().find(|(_, e)| mine(e)).expect("the block is there").0
    }

    fn free_slot(&self) -> u32 {
        (0..).find(|slot| !self.r.entries.contains_key(slot)).expect("a free slot")
    }

    /// Puts content in a free slot.
    fn add(&mut self, content: &[u8], block: u64, kind: SlotKind, snapshot: u32) -> u32 {
        let slot = self.free_slot();
        put(&mut self.bytes, self.r.layout.slot_block(slot), content);
        let crc = crc32c(0, content);
        self.entry(slot, Some(IndexEntry { block, kind, snapshot, crc }));
        slot
    }

    fn log(&mut self, seq: u64, start: u32) {
        let extents = Extents::for_origin(sample::ORIGIN_BLOCKS);
        let mut out = [0; LOG_RECORD_BYTES];
        let run = ExtentRun { start, len: 1 };
        let tag = region_tag(&sample::UUID);
        LogRecord::encode(&mut out, tag, seq, extents, &[run], |b| crc32c(0, b));
        put(&mut self.bytes, Layout::log_block(seq), &out);
    }

    fn map(&mut self, copy: Copy2, seq: u64, log_seq: u64, mask: u16) {
        let extents = Extents::for_origin(sample::ORIGIN_BLOCKS);
        let mut out = vec![0; INTENT_MAP_BYTES];
        let place = out.first_chunk_mut().expect("32 KiB");
        let map = IntentMap { seq, log_seq, extents };
        map.encode(place, sample::UUID, [mask].into_iter(), |b| crc32c(0, b));
        put(&mut self.bytes, Layout::intent_block(copy), &out);
    }
}

/// A damage, and what is made of it.
struct Case {
    name: &'static str,
    region: Good,
    /// Words of one of the faults.
    words: &'static str,
    /// Whether it can be repaired without giving anything up.
    repairable: bool,
    /// Flags that the root has afterwards.
    flags: u32,
    /// Snapshots that are gone if damage is dropped.
    gone: &'static [u32],
}

const MISSING: fn(&Good) -> u32 = |g| g.slot_of(1, 1);

fn cases() -> Vec<Case> {
    let mut out = Vec::new();
    let mut case = |name, region, words, repairable, flags, gone| {
        out.push(Case { name, region, words, repairable, flags, gone });
    };
    let images = Good::with_image;
    let deltas = Good::without_image;
    let l = images().r.layout;
    let old = images().r.root_copy.other();
    let newest = images().r.index_copies[&0];
    let clean = ROOT_CLEAN;
    let full = ROOT_CLEAN | ROOT_FULL_NEEDED;
    for copy in [Copy2::A, Copy2::B] {
        let region = images().flip(l.superblock_block(copy), 70);
        case("superblock", region, "superblock has a wrong checksum", true, clean, &[]);
        let region = images().noise(l.superblock_block(copy), 1);
        case("superblock of noise", region, "superblock has the wrong magic", true, clean, &[]);
        let mut region = images();
        let at = l.superblock_block(copy);
        let mut other = region.r.superblock;
        if copy == Copy2::A {
            other.region_uuid = [8; 16];
        } else {
            other.created_realtime_s += 1;
        }
        let mut block = [0; BLOCK];
        other.encode(&mut block);
        put(&mut region.bytes, at, &block);
        case("superblocks that differ", region, "two valid copies that differ", true, clean, &[]);
    }
    case(
        "older root",
        images().flip(l.root_block(old), 9000),
        "root has a wrong",
        true,
        clean,
        &[],
    );
    let region = images().crashed().flip(l.root_block(old), 9000);
    case("older root after a crash", region, "root has a wrong checksum", true, 0, &[]);
    let mut region = images().flip(l.root_block(old), 9000);
    region.map(Copy2::B, 2, 5, 0);
    region.log(6, 3);
    case(
        "the mark of an opening",
        region,
        "root has a wrong checksum",
        true,
        ROOT_AFTER_CRASH,
        &[],
    );
    for byte in [30, 2000] {
        let region = images().flip(l.index_copy_block(0, newest.other()), byte);
        case("older index", region, "index block has", true, clean, &[]);
        let region = deltas().flip(l.index_copy_block(0, newest), byte);
        case("newer index", region, "index block has", true, full, &[]);
        let region = images().flip(l.index_copy_block(0, newest), byte);
        case("newer index, an image", region, "index block has", false, full, &[]);
        let region = images().crashed().flip(l.index_copy_block(0, newest), byte);
        case("index after a crash", region, "index block has", true, 0, &[]);
    }
    let region = deltas().noise(l.index_copy_block(0, Copy2::A), 2);
    case("both copies of the index", region, "both copies", true, full, &[]);
    let region = images().noise(l.index_copy_block(0, Copy2::A), 2);
    case("both copies of the index, an image", region, "both copies", false, full, &[]);
    let region = images().noise(Layout::intent_block(Copy2::A), 8);
    case("both intent maps", region, "intent map has", true, full, &[]);
    let mut region = images();
    region.map(Copy2::B, 2, 5, 1);
    let region = region.flip(Layout::intent_block(Copy2::B), 300);
    case("an intent map", region, "intent map has a wrong checksum", true, clean, &[]);
    let mut region = images();
    region.log(1, 1);
    region.log(3, 1);
    case("a gap in the log", region, "intent log lacks a record", true, full, &[]);
    let mut region = images();
    region.add(&[0; BLOCK], 0, SlotKind::Dirty, 4);
    let slot = region.r.entries.iter().find(|(_, e)| e.kind == SlotKind::Dirty).map(|e| *e.0);
    let region = region.flip(l.slot_block(slot.expect("a page")), 5);
    case("a page of the dirty map", region, "page 0 of the dirty map", true, clean, &[]);
    let mut region = images();
    let (slot, mut e) = (MISSING(&region), region.r.entries[&MISSING(&region)]);
    region.entry(slot, None);
    case("an entry that is missing", region, "the index says it is free", true, clean, &[]);
    e.crc ^= 1;
    let mut region = images();
    region.entry(slot, Some(e));
    case("an entry's checksum", region, "the index says", true, clean, &[]);
    let mut region = images();
    let page = region.r.root.find(1).expect("a snapshot").manifest_head_slot;
    region.entry(page, None);
    case("the entry of a manifest page", region, "should hold page 0", true, clean, &[]);
    let region = images().flip(l.slot_block(page), 60);
    case("a manifest page", region, "manifest page has a wrong checksum", false, clean, &[1]);
    let region = images().flip(l.slot_block(slot), 60);
    case("a block", region, "has checksum", false, clean, &[1]);
    let mut region = images();
    let content = sample::content(1, 1);
    region.add(&content, 1, SlotKind::Data, 2);
    let region = region.flip(l.slot_block(slot), 60);
    case("a block that is elsewhere", region, "has checksum", true, clean, &[]);
    let region = images().flip(l.slot_block(images().slot_of(3, 42)), 60);
    case("a block of the newest", region, "has checksum", false, clean, &[3]);
    let mut region = images();
    let slot = region.add(&sample::content(599, 9), 599, SlotKind::Data, 3);
    let region = region.flip(l.slot_block(slot), 60);
    case("a block for an image", region, "has checksum", false, clean, &[]);
    let mut region = images().crashed();
    let slot = region.add(&sample::content(599, 9), 599, SlotKind::Data, 3);
    let region = region.flip(l.slot_block(slot), 60);
    case("the same after a crash", region, "has checksum", false, 0, &[]);
    let mut region = images();
    region.add(&sample::content(8, 5), 8, SlotKind::Data, 5);
    case("orphans", region, "belong to no snapshot", true, clean, &[]);
    let mut region = deltas();
    region.add(&sample::content(1, 1), 1, SlotKind::Data, 1);
    case("two slots for a block", region, "lies in two slots", true, clean, &[]);
    let mut region = images();
    region.root(|root| root.find_mut(3).expect("one").state = SnapshotState::Open);
    case("one that is not sealed", region, "snapshot 3 is open", true, full, &[3]);
    out
}

#[test]
fn every_damage() {
    for c in cases() {
        let (name, before) = (c.name, &c.region.bytes);
        let found = faults(before, DATA);
        assert!(found.iter().any(|f| f.what.contains(c.words)), "{name}: {found:?}");
        let all = found.iter().all(Fault::repairable);
        assert_eq!(all, c.repairable, "{name}: {found:?}");
        // Nothing is written without being asked for.
        let (after, did, _) = repaired(before, if c.repairable { DATA } else { DROP });
        assert!(!did.is_empty(), "{name}");
        assert_eq!(faults(&after, DATA), [], "{name}");
        let r = recover(&after[..]).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(r.root.header.flags, c.flags, "{name}");
        let sound = Good::with_image();
        let ids: Vec<u32> = r.root.iter().map(|s| s.id).collect();
        let want: Vec<u32> = [1, 2, 3].into_iter().filter(|id| !c.gone.contains(id)).collect();
        assert_eq!(ids, want, "{name}");
        let mut contents_before = contents(&sound.bytes);
        contents_before.retain(|id, _| !c.gone.contains(id));
        assert!(contents(&after) == contents_before, "{name}: the content is another");
        // The base of the next delta stays known.
        assert_eq!(r.root.header.base_id, c.region.r.root.header.base_id, "{name}");
        if c.repairable {
            let only: Vec<_> = images(&after).into_keys().collect();
            let had: Vec<_> = c.region.r.root.iter().filter(|s| s.scope == Scope::Image).collect();
            assert_eq!(only.len(), had.len(), "{name}: images given up");
        }
        // A region that the kernel refuses because its numbers have come too far is not made.
        assert_eq!(r.root.header.check_room(), Ok(()), "{name}");
        // Repaired again, nothing is left to do.
        let (again, did, _) = repaired(&after, DATA);
        assert!(did.is_empty() && again == after, "{name}: written again");
    }
}

#[test]
fn what_is_left_is_left_alone() {
    for c in cases().into_iter().filter(|c| !c.repairable) {
        let before = faults(&c.region.bytes, DATA);
        let (after, _, _) = repaired(&c.region.bytes, DATA);
        let left: Vec<Fault> = before.into_iter().filter(|f| !f.repairable()).collect();
        assert_eq!(faults(&after, DATA), left, "{}", c.name);
    }
}

/// What a power loss may leave of a repair: what was flushed, and of the rest any one write, all but one, or one in half.
fn cuts(bytes: &[u8], did: &[Did]) -> Vec<Vec<u8>> {
    let mut out = vec![bytes.to_vec()];
    let mut durable = bytes.to_vec();
    for batch in did.split(|d| matches!(d, Did::Flush)) {
        let mut all = durable.clone();
        for d in batch {
            let Did::Write(block, data) = d else { continue };
            for half in [&data[..data.len() / 2], &data[..512], &data[..]] {
                let mut cut = all.clone();
                put(&mut cut, *block, half);
                out.push(cut);
            }
            let mut alone = durable.clone();
            put(&mut alone, *block, data);
            out.push(alone);
            put(&mut all, *block, data);
        }
        durable = all;
    }
    out
}

#[test]
fn a_repair_that_is_cut_off() {
    let mut count = 0;
    for c in cases() {
        let options = if c.repairable { DATA } else { DROP };
        let (whole, did, _) = repaired(&c.region.bytes, options);
        let (contents_whole, images_whole) = (contents(&whole), images(&whole));
        let whole = recover(&whole[..]).expect("a region");
        for cut in cuts(&c.region.bytes, &did) {
            count += 1;
            let (after, _, _) = repaired(&cut, options);
            let name = c.name;
            assert_eq!(faults(&after, DATA), [], "{name}");
            assert!(contents(&after) == contents_whole, "{name}: another content");
            assert!(images(&after) == images_whole, "{name}: other images");
            let r = recover(&after[..]).expect("a region");
            let (h, want) = (r.root.header, whole.root.header);
            assert!(h.next_op >= want.next_op && h.base_id == want.base_id, "{name}");
            assert!(h.next_snapshot >= want.next_snapshot, "{name}");
            // It says no less than it would have: that all may have changed, or that there was a crash.
            let kept = want.flags & (ROOT_FULL_NEEDED | ROOT_AFTER_CRASH);
            assert_eq!(h.flags & kept, kept, "{name}");
            // And what it leaves when it is cut off is not refused, if it was not before.
            if recover(&c.region.bytes[..]).is_ok() {
                assert!(recover(&cut[..]).is_ok(), "{name}: refused after the cut");
            }
        }
    }
    println!("{count} cuts");
    assert!(count > 300);
}

#[test]
fn what_is_unconfirmed_is_no_fault() {
    let mut g = Good::with_image().crashed();
    let good = g.add(&sample::content(599, 9), 599, SlotKind::Unconfirmed, 3);
    let cut = g.add(&sample::content(598, 9), 598, SlotKind::Unconfirmed, 3);
    let l = g.r.layout;
    let g = g.flip(l.slot_block(cut), 60);
    assert_eq!(faults(&g.bytes, DATA), []);
    // Written again for another reason, the index says what was found.
    let newest = g.r.index_copies[&0];
    let g = g.flip(l.index_copy_block(0, newest.other()), 2000);
    let (after, _, _) = repaired(&g.bytes, DATA);
    let r = recover(&after[..]).expect("a region");
    assert_eq!(r.entries.get(&good).map(|e| e.kind), Some(SlotKind::Data));
    assert_eq!(r.entries.get(&cut), None);
}

#[test]
fn numbers_go_on_after_a_lost_mark() {
    let c = cases().into_iter().find(|c| c.name == "the mark of an opening").expect("it is there");
    let before = c.region.r.root.header.next_op;
    let (after, _, _) = repaired(&c.region.bytes, DATA);
    let r = recover(&after[..]).expect("a region");
    assert_eq!(r.root.header.next_op, before + OP_RESERVE);
}

#[test]
fn random_damage() {
    let good = [Good::with_image().bytes, Good::without_image().bytes];
    let (mut refused, mut whole, mut left) = (0, 0, 0);
    for seed in 0..600 {
        let forged = Forger::new(seed).region(&good[seed as usize % 2]);
        let what = format!("region {seed} ({})", forged.what);
        let medium = Memory::new(&forged.bytes);
        for options in [DATA, DROP] {
            let Ok(checked) = look(&medium, options) else {
                assert!(recover(&forged.bytes[..]).is_err(), "{what}: refused");
                refused += 1;
                continue;
            };
            let before = checked.report.faults.clone();
            let (after, did, _) = repaired(&forged.bytes, options);
            let now = faults(&after, options);
            let kept: Vec<&Fault> = before.iter().filter(|f| !f.repairable()).collect();
            assert!(now.iter().all(|f| !f.repairable()), "{what}: {before:?} then {now:?}");
            assert!(now.len() <= kept.len(), "{what}: {before:?} then {now:?}");
            assert!(did.is_empty() != before.iter().any(Fault::repairable), "{what}: {before:?}");
            whole += u32::from(now.is_empty());
            left += u32::from(!now.is_empty());
            let Ok(r) = recover(&forged.bytes[..]) else { continue };
            // It was accepted: it still is, and what was good is there.
            let kept = contents(&after);
            let dropped =
                |id: u32| before.iter().any(|f| f.what.contains(&format!("snapshot {id}")));
            for (id, content) in contents(&forged.bytes) {
                let same = kept.get(&id) == Some(&content);
                assert!(same || dropped(id), "{what}: snapshot {id} is another; {before:?}");
            }
            assert!(recover(&after[..]).expect("accepted").root.header.seq >= r.root.header.seq);
        }
    }
    println!("{refused} refused, {whole} whole, {left} with something left");
    assert!(whole > 300 && left > 20);
}
