// SPDX-License-Identifier: GPL-2.0-only

//! Hostile regions, blobs and streams: good ones with bytes flipped, fields set to what they cannot or should not be,
//! parts exchanged; most of them with their checksums put right, so that only the meaning is wrong.

use presnap_engine::crc32c::crc32c;
use presnap_engine::manifest::chain_crc;
use presnap_engine::region::root::{MAX_SNAPSHOTS, ROOT_BYTES, SNAPSHOT_BYTES};
use presnap_engine::region::Copy2;
use presnap_engine::replication::{RECORD_HEADER_BYTES as STREAM_RECORD, STREAM_HEADER_BYTES};

use crate::bytes::{get, get_u32, mend, put_u32};
use crate::recover::{recover, Recovered, BLOCK};

/// Fields, as (offset, bytes).
pub(crate) type Fields = &'static [(usize, usize)];

pub(crate) const SUPERBLOCK: Fields = &[
    (0, 8),
    (8, 4),
    (12, 4),
    (16, 8),
    (24, 8),
    (32, 8),
    (48, 8),
    (56, 8),
    (64, 8),
    (72, 4),
    (76, 4),
];
pub(crate) const ROOT: Fields =
    &[(0, 8), (8, 4), (12, 4), (16, 8), (24, 8), (40, 8), (48, 4), (52, 4), (56, 4), (60, 4)];
pub(crate) const RECORD: Fields = &[
    (0, 4),
    (4, 4),
    (8, 1),
    (9, 1),
    (10, 1),
    (11, 1),
    (12, 4),
    (16, 4),
    (20, 4),
    (24, 4),
    (28, 4),
    (32, 8),
    (40, 8),
    (48, 8),
    (56, 8),
    (64, 8),
    (72, 8),
    (80, 8),
    (88, 8),
    (96, 8),
    (184, 8),
];
pub(crate) const INDEX: Fields = &[(0, 4), (4, 4), (8, 8), (16, 8), (24, 4), (28, 4)];
pub(crate) const ENTRY: Fields = &[(0, 6), (0, 6), (6, 1), (7, 1), (8, 4), (8, 4), (12, 4)];
const PAGE: Fields = &[(0, 4), (4, 4), (8, 4), (12, 4), (16, 4), (20, 4), (24, 8)];
pub(crate) const CHUNK: Fields = &[(0, 8), (8, 4), (12, 4), (16, 2), (18, 2), (20, 4), (24, 8)];

pub(crate) const STREAM: Fields = &[
    (0, 8),
    (8, 4),
    (16, 4),
    (20, 4),
    (24, 4),
    (28, 8),
    (44, 8),
    (60, 8),
    (68, 8),
    (76, 8),
    (84, 8),
    (92, 8),
    (100, 8),
    (108, 8),
    (116, 8),
    (124, 4),
];
const RECORD_OF_STREAM: Fields = &[(0, 1), (1, 1), (4, 4), (8, 8), (16, 8), (24, 4), (36, 4)];

/// Where checksums lie, and lists begin.
const SUPERBLOCK_CRC: usize = 12;
const ROOT_CRC: usize = 12;
const INDEX_CRC: usize = 24;
const PAGE_CRC: usize = 20;
const FIRST_RECORD: usize = ROOT_BYTES - MAX_SNAPSHOTS * SNAPSHOT_BYTES;
const MANIFEST_CRC: usize = 20;
const INDEX_HEADER: usize = 32;
const PAGE_HEADER: usize = 32;

fn put(bytes: &mut [u8], (at, width): (usize, usize), value: u64) {
    bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
}

/// Makes hostile things, always the same ones of the same seed.
pub struct Forger {
    rng: fastrand::Rng,
    /// Numbers that mean something here: sizes, borders, ids.
    numbers: Vec<u64>,
    said: Vec<String>,
    trusted: bool,
}

/// A hostile region.
pub struct Forged {
    /// Its content.
    pub bytes: Vec<u8>,
    /// What was done to it.
    pub what: String,
    /// A checksum was put right after a change: what the region says may be wrong without anybody being able to tell.
    pub mended: bool,
}

impl Forger {
    /// Begins.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: fastrand::Rng::with_seed(seed),
            numbers: Vec::new(),
            said: Vec::new(),
            trusted: true,
        }
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.rng.u64(..n) == 0
    }

    fn below(&mut self, n: usize) -> usize {
        self.rng.usize(..n.max(1))
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> Option<T> {
        (!list.is_empty()).then(|| list[self.below(list.len())])
    }

    /// A value for a field: near what it is, at an end, of another meaning, or anything.
    fn value(&mut self, now: u64, width: usize) -> u64 {
        let most = u64::MAX >> (64 - 8 * width);
        // A byte is a kind, a state, a scope, flags: the next one may be as good.
        if width == 1 && self.one_in(2) {
            return self.rng.u64(..5);
        }
        match self.rng.u8(..9) {
            0 => 0,
            1 => most,
            2 => most - self.rng.u64(..3),
            3 => (most >> 1).wrapping_add(self.rng.u64(..2)),
            4 => now.wrapping_add(1),
            5 => now.wrapping_sub(1),
            6 => now ^ 1 << self.rng.usize(..8 * width),
            7 => {
                let numbers = std::mem::take(&mut self.numbers);
                let near = self.rng.u64(..3).wrapping_sub(1);
                let value = self.pick(&numbers).unwrap_or(1).wrapping_add(near);
                self.numbers = numbers;
                value
            }
            _ => self.rng.u64(..),
        }
    }

    /// Changes a structure: one of its fields, most often, or any bit of it.
    fn change(&mut self, name: &str, bytes: &mut [u8], fields: Fields) {
        if self.one_in(6) {
            let at = self.below(bytes.len());
            bytes[at] ^= 1 << self.rng.u8(..8);
            self.said.push(format!("{name}: a bit of byte {at}"));
        } else if let Some(field) = self.pick(fields) {
            let now = get(bytes, field);
            let value = self.value(now, field.1);
            put(bytes, field, value);
            self.said.push(format!(
                "{name}: byte {} from {now:#x} to {:#x}",
                field.0,
                get(bytes, field)
            ));
        }
    }

    /// Puts a checksum right, if that was decided.
    fn mend(&mut self, yes: bool, bytes: &mut [u8], crc_at: usize) {
        let before = get_u32(bytes, crc_at);
        if yes {
            mend(bytes, crc_at);
            self.trusted &= before == get_u32(bytes, crc_at);
        }
    }

    /// Makes a hostile region of a good one.
    ///
    /// # Panics
    ///
    /// If the one given is not good.
    pub fn region(&mut self, good: &[u8]) -> Forged {
        let r = recover(good).expect("a good region");
        self.numbers = vec![
            r.superblock.slots.into(),
            r.superblock.region_blocks,
            r.superblock.origin_blocks(),
            r.superblock.origin_sectors,
            r.root.header.next_snapshot.into(),
            r.root.header.next_op,
            r.root.header.seq,
            1,
            2,
            3,
            1 << 31,
            1 << 48,
            1 << 63,
        ];
        self.said.clear();
        self.trusted = true;
        let mut bytes = good.to_vec();
        let changes = 1 + self.below(4);
        // Not every change finds what it would change.
        while self.said.len() < changes {
            let mend = !self.one_in(6);
            match self.rng.u8(..16) {
                0 | 1 => self.superblock(&mut bytes, &r, mend),
                2 | 3 => self.root(&mut bytes, &r, mend),
                4..=6 => self.record(&mut bytes, &r, mend),
                7 => self.index(&mut bytes, &r, mend),
                8 | 9 => self.entry(&mut bytes, &r, mend),
                10..=12 => self.page(&mut bytes, &r, mend),
                13 => self.data(&mut bytes, &r, mend),
                14 => self.transplant(&mut bytes, &r),
                _ => self.anything(&mut bytes, &r),
            }
        }
        let mended = !self.trusted;
        Forged { bytes, what: self.said.join("; "), mended }
    }

    /// Both copies alike, or one.
    fn copies(&mut self, newest: Copy2) -> Vec<Copy2> {
        match self.rng.u8(..4) {
            0 => vec![newest.other()],
            1 | 2 => vec![newest],
            _ => vec![newest, newest.other()],
        }
    }

    fn superblock(&mut self, bytes: &mut [u8], r: &Recovered, mend: bool) {
        let both = self.one_in(2);
        let copies = if both { vec![Copy2::A, Copy2::B] } else { self.copies(Copy2::A) };
        let mut changed = bytes[at(r.layout.superblock_block(copies[0]))..][..BLOCK].to_vec();
        self.change(&format!("superblock {copies:?}"), &mut changed, SUPERBLOCK);
        self.mend(mend, &mut changed, SUPERBLOCK_CRC);
        for copy in copies {
            bytes[at(r.layout.superblock_block(copy))..][..BLOCK].copy_from_slice(&changed);
        }
    }

    fn root(&mut self, bytes: &mut [u8], r: &Recovered, mend: bool) {
        for copy in self.copies(r.root_copy) {
            let root = &mut bytes[at(r.layout.root_block(copy))..][..ROOT_BYTES];
            self.change(&format!("root {copy:?}"), &mut root[..64], ROOT);
            self.mend(mend, root, ROOT_CRC);
        }
    }

    fn record(&mut self, bytes: &mut [u8], r: &Recovered, mend: bool) {
        let no = self.below(r.root.len());
        for copy in self.copies(r.root_copy) {
            let root = &mut bytes[at(r.layout.root_block(copy))..][..ROOT_BYTES];
            let record = &mut root[FIRST_RECORD + no * SNAPSHOT_BYTES..][..SNAPSHOT_BYTES];
            self.change(&format!("record {no} {copy:?}"), record, RECORD);
            self.mend(mend, root, ROOT_CRC);
        }
    }

    /// An index block, the newest copy or another.
    fn index_place(&mut self, r: &Recovered) -> Option<(u32, Vec<Copy2>)> {
        let blocks: Vec<_> = r.index_copies.iter().map(|(no, copy)| (*no, *copy)).collect();
        let (no, newest) = self.pick(&blocks)?;
        Some((no, self.copies(newest)))
    }

    fn index(&mut self, bytes: &mut [u8], r: &Recovered, mend: bool) {
        let Some((no, copies)) = self.index_place(r) else { return };
        for copy in copies {
            let block = &mut bytes[at(r.layout.index_copy_block(no, copy))..][..BLOCK];
            self.change(&format!("index {no} {copy:?}"), &mut block[..INDEX_HEADER], INDEX);
            self.mend(mend, block, INDEX_CRC);
        }
    }

    fn entry(&mut self, bytes: &mut [u8], r: &Recovered, mend: bool) {
        let slots: Vec<u32> = r.entries.keys().copied().collect();
        let Some(slot) = self.pick(&slots) else { return };
        let (no, entry) = r.layout.index_block(slot);
        let copies = r.index_copies.get(&no).map(|&newest| self.copies(newest)).unwrap_or_default();
        for copy in copies {
            let block = &mut bytes[at(r.layout.index_copy_block(no, copy))..][..BLOCK];
            let entry = &mut block[INDEX_HEADER + entry as usize * 16..][..16];
            self.change(&format!("entry of slot {slot} {copy:?}"), entry, ENTRY);
            self.mend(mend, block, INDEX_CRC);
        }
    }

    fn page(&mut self, bytes: &mut [u8], r: &Recovered, mend: bool) {
        let records: Vec<(usize, _)> =
            r.root.iter().copied().enumerate().filter(|(_, s)| s.manifest_pages > 0).collect();
        let Some((no, record)) = self.pick(&records) else { return };
        let Ok((_, slots)) = r.manifest(bytes, &record) else { return };
        let Some(slot) = self.pick(&slots) else { return };
        let page = &mut bytes[at(r.layout.slot_block(slot))..][..BLOCK];
        let count = (get_u32(page, 12) as usize).clamp(1, 127);
        let name = format!("page in slot {slot} of snapshot {}", record.id);
        if self.one_in(3) {
            self.change(&name, &mut page[..PAGE_HEADER], PAGE);
        } else {
            let chunk = self.below(count);
            let bytes = &mut page[PAGE_HEADER + chunk * 32..][..32];
            self.change(&format!("{name}, chunk {chunk}"), bytes, CHUNK);
        }
        self.mend(mend, page, PAGE_CRC);
        // What refers to the page, too: then only its meaning is wrong.
        if mend && !self.one_in(3) {
            let crc = slots.iter().fold(0, |crc, &s| {
                chain_crc(crc, get_u32(&bytes[at(r.layout.slot_block(s))..], PAGE_CRC))
            });
            for copy in [Copy2::A, Copy2::B] {
                let root = &mut bytes[at(r.layout.root_block(copy))..][..ROOT_BYTES];
                put_u32(root, FIRST_RECORD + no * SNAPSHOT_BYTES + MANIFEST_CRC, crc);
                self.mend(true, root, ROOT_CRC);
            }
            self.mend_entry(bytes, r, slot);
        }
    }

    /// Puts right what the index says of a slot's content.
    fn mend_entry(&mut self, bytes: &mut [u8], r: &Recovered, slot: u32) {
        let crc = crc32c(0, &bytes[at(r.layout.slot_block(slot))..][..BLOCK]);
        let (no, entry) = r.layout.index_block(slot);
        let Some(&copy) = r.index_copies.get(&no) else { return };
        let block = &mut bytes[at(r.layout.index_copy_block(no, copy))..][..BLOCK];
        put_u32(block, INDEX_HEADER + entry as usize * 16 + 12, crc);
        self.mend(true, block, INDEX_CRC);
    }

    fn data(&mut self, bytes: &mut [u8], r: &Recovered, mend: bool) {
        let slots: Vec<u32> = r.entries.keys().copied().collect();
        let Some(slot) = self.pick(&slots) else { return };
        let block = &mut bytes[at(r.layout.slot_block(slot))..][..BLOCK];
        let place = self.below(BLOCK);
        block[place] ^= 1 << self.rng.u8(..8);
        self.said.push(format!("content of slot {slot}: a bit of byte {place}"));
        if mend && self.one_in(2) {
            self.mend_entry(bytes, r, slot);
        }
    }

    /// A block that is good somewhere else.
    fn transplant(&mut self, bytes: &mut [u8], r: &Recovered) {
        let blocks: Vec<u64> = [0, 15]
            .into_iter()
            .chain(16..r.layout.slot_block(0))
            .chain(r.entries.keys().map(|&slot| r.layout.slot_block(slot)))
            .collect();
        let (Some(from), Some(to)) = (self.pick(&blocks), self.pick(&blocks)) else { return };
        bytes.copy_within(at(from)..at(from) + BLOCK, at(to));
        self.said.push(format!("block {from} over block {to}"));
        // It has a good checksum, and means something else.
        self.trusted = false;
    }

    /// Any block: noise, zeroes or a bit.
    fn anything(&mut self, bytes: &mut [u8], r: &Recovered) {
        let used = r.layout.slot_block(64);
        let no = self.rng.u64(..used.min(r.layout.region_blocks));
        let block = &mut bytes[at(no)..][..BLOCK];
        match self.rng.u8(..3) {
            0 => block.fill(0),
            1 => self.rng.fill(block),
            _ => block[self.rng.usize(..BLOCK)] ^= 1 << self.rng.u8(..8),
        }
        self.said.push(format!("noise in block {no}"));
    }

    /// Makes a hostile model blob of a good one.
    pub fn blob(&mut self, good: &[u8]) -> Vec<u8> {
        let mut blob = good.to_vec();
        self.said.clear();
        self.numbers = vec![127, 128, 255, 32, 33, 48, 49, 1 << 15, 1 << 31, good.len() as u64];
        for _ in 0..1 + self.below(5) {
            if blob.len() < 16 {
                break;
            }
            match self.rng.u8(..12) {
                0 => blob.truncate(self.rng.usize(8..blob.len())),
                1 => blob.extend((0..self.rng.usize(1..64)).map(|i| i as u8)),
                2..=4 => {
                    // The numbers of the header and of the normalisers.
                    let width = [1, 1, 2, 4][self.below(4)];
                    let place = self.below(blob.len().min(232) - width);
                    let value = self.value(get(&blob, (place, width)), width);
                    put(&mut blob, (place, width), value);
                }
                5..=8 => {
                    let width = [1, 1, 4, 4][self.below(4)];
                    let place = self.below(blob.len() - width) & !(width - 1);
                    let width = width.min(blob.len() - place);
                    let value = self.value(get(&blob, (place, width)), width);
                    put(&mut blob, (place, width), value);
                }
                9 => {
                    let from = self.below(blob.len());
                    let to = (from + self.rng.usize(1..64)).min(blob.len());
                    let byte = [0x7f, 0x81, 0x80, 0xff, 0][self.below(5)];
                    blob[from..to].fill(byte);
                }
                _ => {
                    let place = self.below(blob.len());
                    blob[place] ^= 1 << self.rng.u8(..8);
                }
            }
        }
        if !self.one_in(10) {
            let len = blob.len() as u32;
            if !self.one_in(8) {
                put_u32(&mut blob, 16, len);
            }
            crate::net::mend(&mut blob);
        }
        blob
    }

    /// Makes a hostile stream of a good one.
    pub fn stream(&mut self, good: &[u8]) -> Vec<u8> {
        let mut parts = parts(good);
        self.said.clear();
        self.numbers = vec![1, 2, 3, 4, 64, 65, 512, 4096, 1 << 31, 1 << 48, good.len() as u64];
        for _ in 0..1 + self.below(3) {
            if parts.len() < 2 {
                break;
            }
            let which = self.below(parts.len());
            match self.rng.u8(..12) {
                0 => drop(parts.remove(which)),
                1 => {
                    let again = parts[which].clone();
                    parts.insert(self.below(parts.len()), again);
                }
                2 => {
                    let other = self.below(parts.len());
                    parts.swap(which, other);
                }
                3 => {
                    let len = self.below(parts[which].len());
                    parts[which].truncate(len);
                }
                4 => parts[which].push(0),
                5..=7 if parts[0].len() >= STREAM_HEADER_BYTES => {
                    self.change("header", &mut parts[0][..STREAM_HEADER_BYTES], STREAM);
                }
                8..=10 if which > 0 && parts[which].len() >= STREAM_RECORD => {
                    self.change("record", &mut parts[which][..STREAM_RECORD], RECORD_OF_STREAM);
                }
                _ => {
                    let place = self.below(parts[which].len());
                    if let Some(byte) = parts[which].get_mut(place) {
                        *byte ^= 1 << self.rng.u8(..8);
                    }
                }
            }
        }
        if !self.one_in(6) {
            let renumber = self.one_in(2);
            mend_stream(&mut parts, renumber);
        }
        parts.concat()
    }
}

/// The parts of a stream: its header, and each record with its data.
pub fn parts(stream: &[u8]) -> Vec<Vec<u8>> {
    let (header, mut rest) = stream.split_at(STREAM_HEADER_BYTES.min(stream.len()));
    let mut out = vec![header.to_vec()];
    while rest.len() >= STREAM_RECORD {
        let data = if rest[0] == 1 { get_u32(rest, 4) as usize * BLOCK } else { 0 };
        let (part, tail) = rest.split_at((STREAM_RECORD + data).min(rest.len()));
        out.push(part.to_vec());
        rest = tail;
    }
    out.push(rest.to_vec());
    out.retain(|p| !p.is_empty());
    out
}

/// Puts the checksums of a stream right, the chain of its records too; and their numbers.
fn mend_stream(parts: &mut [Vec<u8>], renumber: bool) {
    let Some((header, records)) = parts.split_first_mut() else { return };
    if header.len() != STREAM_HEADER_BYTES {
        return;
    }
    mend(header, 12);
    let mut chain = crc32c(0, header);
    for (sequence, record) in (0u64..).zip(records) {
        if record.len() < STREAM_RECORD {
            return;
        }
        if renumber {
            record[16..24].copy_from_slice(&sequence.to_le_bytes());
        }
        let (head, data) = record.split_at_mut(STREAM_RECORD);
        put_u32(head, 24, if data.is_empty() { 0 } else { crc32c(0, data) });
        chain = crc32c(chain, &head[..28]);
        put_u32(head, 28, chain);
        let crc = crc32c(0, &head[..32]);
        put_u32(head, 32, crc);
    }
}

fn at(block: u64) -> usize {
    block as usize * BLOCK
}
