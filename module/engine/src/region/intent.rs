// SPDX-License-Identifier: GPL-2.0-only

//! Durable intent on disk: which extents of the origin may have been written since their dirty blocks were last put on disk.
//!
//! An *intent map* of one bit an extent, in two copies written in turn, and a *log* of the extents added since, a ring
//! of blocks. A record of the log has the sequence number of the one before plus 1; the map says which records it
//! has in it. So adding costs one write of a block, and taking away (only the map does) waits for the next map.
//!
//! The idea is that of DRBD's activity log and of the write-intent bitmap of md.

use super::bytes::{is_zero, put_u32, Reader, Writer};
use super::layout::{INTENT_BLOCKS, LOG_BLOCKS};
use super::{has_room, pick_newer, Fault, FormatError, Limits, Part, Picked};
use crate::crc32c::with_hole;
use crate::fixed::div_ceil;
use crate::geometry::BLOCK_BYTES;

/// Bytes of an intent map.
pub const INTENT_MAP_BYTES: usize = INTENT_BLOCKS as usize * BLOCK_BYTES as usize;
/// Bytes of a record of the intent log.
pub const LOG_RECORD_BYTES: usize = BLOCK_BYTES as usize;
/// Runs of extents that a record has room for.
pub const LOG_RUNS: usize = (LOG_RECORD_BYTES - LOG_HEADER_BYTES) / RUN_BYTES;
/// Extents that a map has room for.
pub const MAX_EXTENTS: u64 = (INTENT_MAP_BYTES - MAP_HEADER_BYTES) as u64 * 8;
/// The smallest extent: 64 blocks, 256 KiB.
pub const MIN_EXTENT_SHIFT: u32 = 6;

const MAP_MAGIC: [u8; 8] = *b"PRESINTM";
const LOG_MAGIC: u32 = u32::from_le_bytes(*b"PSIL");
const MAP_HEADER_BYTES: usize = 128;
const LOG_HEADER_BYTES: usize = 32;
const RUN_BYTES: usize = 8;
/// Offsets of the checksums.
const MAP_CRC_AT: usize = 12;
const LOG_CRC_AT: usize = 24;
/// Version of map and log.
const VERSION: u32 = 1;

/// How an origin is divided into extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extents {
    /// An extent has `1 << shift` blocks.
    pub shift: u32,
    /// Number of extents, at most [`MAX_EXTENTS`].
    pub count: u32,
}

impl Extents {
    /// The smallest extents with which an origin of `origin_blocks` blocks (at most 2^48) fits in a map.
    pub const fn for_origin(origin_blocks: u64) -> Self {
        let mut shift = MIN_EXTENT_SHIFT;
        while shift < 63 && div_ceil(origin_blocks, 1 << shift) > MAX_EXTENTS {
            shift += 1;
        }
        Self { shift, count: div_ceil(origin_blocks, 1 << shift) as u32 }
    }

    /// The extents of a run of blocks (not empty): the first, and how many.
    pub const fn of(&self, first: u64, count: u64) -> (u64, u64) {
        // No shift is above 63: `for_origin` makes none, and `decode` refuses what it would not make.
        let start = first.wrapping_shr(self.shift);
        let last = first.saturating_add(count.saturating_sub(1)).wrapping_shr(self.shift);
        (start, last.saturating_sub(start).saturating_add(1))
    }

    /// The blocks of an extent: the first, and how many; the last extent may reach beyond the origin.
    pub const fn blocks(&self, extent: u64) -> (u64, u64) {
        (extent.wrapping_shl(self.shift), 1u64.wrapping_shl(self.shift))
    }
}

/// The header of an intent map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntentMap {
    /// Version counter: the copy with the higher one is the newer.
    pub seq: u64,
    /// The last record of the log that the map has in it.
    pub log_seq: u64,
    /// What a bit stands for.
    pub extents: Extents,
}

impl IntentMap {
    /// The map of a fresh region: no intent.
    pub const fn fresh(extents: Extents) -> Self {
        Self { seq: 1, log_seq: 0, extents }
    }

    /// Encodes a map; `masks` are the bits, 16 at a time, missing ones zero.
    pub fn encode(
        &self,
        out: &mut [u8; INTENT_MAP_BYTES],
        region_uuid: [u8; 16],
        masks: impl Iterator<Item = u16>,
        crc32c: impl FnOnce(&[u8]) -> u32,
    ) {
        let mut w = Writer::new(out);
        w.array(MAP_MAGIC);
        w.u32(VERSION);
        w.u32(0);
        w.u64(self.seq);
        w.array(region_uuid);
        w.u64(self.log_seq);
        w.u32(self.extents.shift);
        w.u32(self.extents.count);
        w.zero_rest();
        let places = out.get_mut(MAP_HEADER_BYTES..).unwrap_or_default();
        for (place, mask) in places.chunks_exact_mut(2).zip(masks) {
            if let Some(place) = place.first_chunk_mut() {
                *place = mask.to_le_bytes();
            }
        }
        let crc = crc32c(out);
        put_u32(out, MAP_CRC_AT, crc);
    }

    /// Decodes a map and checks it against the origin it is for.
    pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Self, FormatError> {
        let fail = |fault| FormatError::new(Part::IntentMap, fault);
        let map = bytes.first_chunk::<INTENT_MAP_BYTES>().ok_or(fail(Fault::Short))?;
        let (header, bits) = map.split_at_checked(MAP_HEADER_BYTES).ok_or(fail(Fault::Short))?;
        let mut r = Reader::new(header);
        if r.array() != MAP_MAGIC {
            return Err(fail(Fault::Magic));
        }
        let version = r.u32();
        if r.u32() != with_hole(map, MAP_CRC_AT) {
            return Err(fail(Fault::Checksum));
        }
        if version != VERSION {
            return Err(fail(Fault::Version));
        }
        let (seq, uuid, log_seq) = (r.u64(), r.array::<16>(), r.u64());
        let extents = Extents { shift: r.u32(), count: r.u32() };
        if !r.rest_is_zero() {
            return Err(fail(Fault::Reserved));
        }
        if uuid != limits.region_uuid {
            return Err(fail(Fault::Foreign));
        }
        if !has_room(seq, u64::MAX) || !has_room(log_seq, u64::MAX) {
            return Err(fail(Fault::Exhausted));
        }
        if extents != Extents::for_origin(limits.origin_blocks) {
            return Err(fail(Fault::Origin));
        }
        // A bit beyond the last extent would be a block beyond the origin.
        let count = extents.count as usize;
        let (used, unused) = bits.split_at_checked(count.div_ceil(8)).ok_or(fail(Fault::Count))?;
        let last = used.last().copied().unwrap_or(0);
        let spare = (8usize.wrapping_sub(count % 8) % 8) as u32;
        let beyond = !(u8::MAX.checked_shr(spare).unwrap_or(0));
        if !is_zero(unused) || last & beyond != 0 {
            return Err(fail(Fault::Block));
        }
        Ok(Self { seq, log_seq, extents })
    }

    /// Decodes both copies and picks the newer valid one. The next version goes to `copy.other()`.
    pub fn pick(a: &[u8], b: &[u8], limits: &Limits) -> Result<Picked<Self>, FormatError> {
        pick_newer(Self::decode(a, limits), Self::decode(b, limits), |map| map.seq)
    }

    /// The bits of an encoded map, 16 at a time.
    pub fn masks(bytes: &[u8]) -> impl Iterator<Item = u16> + '_ {
        let bits = bytes.get(MAP_HEADER_BYTES..).unwrap_or(&[]);
        let mut rest = bits;
        core::iter::from_fn(move || {
            let (pair, tail) = rest.split_first_chunk::<2>()?;
            rest = tail;
            Some(u16::from_le_bytes(*pair))
        })
    }
}

/// A run of extents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExtentRun {
    /// The first extent.
    pub start: u32,
    /// How many.
    pub len: u32,
}

/// A record of the intent log: extents that are added.
#[derive(Clone, Copy, Debug)]
pub struct LogRecord<'a> {
    /// Its number, from 1; the record lies at [`super::Layout::log_block`] of it.
    pub seq: u64,
    runs: &'a [u8],
}

impl<'a> LogRecord<'a> {
    /// Encodes a record; runs beyond [`LOG_RUNS`] are ignored.
    pub fn encode(
        out: &mut [u8; LOG_RECORD_BYTES],
        region_tag: u64,
        seq: u64,
        extents: Extents,
        runs: &[ExtentRun],
        crc32c: impl FnOnce(&[u8]) -> u32,
    ) {
        let runs = runs.get(..LOG_RUNS).unwrap_or(runs);
        let mut w = Writer::new(out);
        w.u32(LOG_MAGIC);
        w.u32(runs.len() as u32);
        w.u64(seq);
        w.u64(region_tag);
        w.u32(0);
        w.u32(extents.shift);
        for run in runs {
            w.u32(run.start);
            w.u32(run.len);
        }
        w.zero_rest();
        let crc = crc32c(out);
        put_u32(out, LOG_CRC_AT, crc);
    }

    /// Decodes and checks a record.
    pub fn decode(bytes: &'a [u8], extents: Extents, region_tag: u64) -> Result<Self, FormatError> {
        let fail = |fault| FormatError::new(Part::IntentLog, fault);
        let block = bytes.first_chunk::<LOG_RECORD_BYTES>().ok_or(fail(Fault::Short))?;
        let (header, runs) = block.split_at_checked(LOG_HEADER_BYTES).ok_or(fail(Fault::Short))?;
        let mut r = Reader::new(header);
        if r.u32() != LOG_MAGIC {
            return Err(fail(Fault::Magic));
        }
        let (count, seq, tag) = (r.u32(), r.u64(), r.u64());
        if r.u32() != with_hole(block, LOG_CRC_AT) {
            return Err(fail(Fault::Checksum));
        }
        if tag != region_tag {
            return Err(fail(Fault::Foreign));
        }
        if !has_room(seq, u64::MAX) {
            return Err(fail(Fault::Exhausted));
        }
        if r.u32() != extents.shift {
            return Err(fail(Fault::Origin));
        }
        let used = (count as usize).saturating_mul(RUN_BYTES);
        let (runs, unused) = runs.split_at_checked(used).ok_or(fail(Fault::Count))?;
        if !is_zero(unused) {
            return Err(fail(Fault::Reserved));
        }
        let record = Self { seq, runs };
        let inside = |run: ExtentRun| {
            run.len != 0 && run.start.checked_add(run.len).is_some_and(|end| end <= extents.count)
        };
        if !record.runs().all(inside) {
            return Err(fail(Fault::Block));
        }
        Ok(record)
    }

    /// The runs of extents that it adds.
    pub fn runs(&self) -> impl Iterator<Item = ExtentRun> + 'a {
        self.runs.chunks_exact(RUN_BYTES).map(|bytes| {
            let mut r = Reader::new(bytes);
            ExtentRun { start: r.u32(), len: r.u32() }
        })
    }
}

/// What became of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// The last record; the next one has the number after it.
    pub last_seq: u64,
    /// Records that were added to the map.
    pub records: u32,
    /// The highest number found, in order or not.
    pub newest_seq: u64,
    /// A record is damaged though later ones are there: extents are lost, and nothing can be said of what was written.
    pub gap: bool,
}

/// Reads a log (`ring`, all of its blocks) and hands out the extents that it adds to a map.
pub fn replay(
    ring: &[u8],
    map: &IntentMap,
    region_tag: u64,
    mut add: impl FnMut(ExtentRun),
) -> Replayed {
    let record = |seq: u64| {
        let at = (seq % LOG_BLOCKS) as usize;
        let bytes = ring.chunks_exact(LOG_RECORD_BYTES).nth(at)?;
        LogRecord::decode(bytes, map.extents, region_tag).ok()
    };
    let mut replayed = Replayed { last_seq: map.log_seq, records: 0, newest_seq: 0, gap: false };
    for _ in 0..LOG_BLOCKS {
        let next = replayed.last_seq.saturating_add(1);
        let Some(record) = record(next).filter(|record| record.seq == next) else { break };
        record.runs().for_each(&mut add);
        replayed.last_seq = next;
        replayed.records = replayed.records.saturating_add(1);
    }
    // The last one may be a write that was cut off: nobody went on before it was durable.
    let newest = (0..LOG_BLOCKS).filter_map(record).map(|record| record.seq).max().unwrap_or(0);
    replayed.newest_seq = newest;
    replayed.gap = newest > replayed.last_seq;
    replayed
}

#[cfg(test)]
mod tests {
    use super::super::Copy2;
    use super::*;
    use crate::crc32c::crc32c;

    const LIMITS: Limits =
        Limits { region_uuid: [5; 16], slots: 2000, origin_blocks: 100_000, next_snapshot: 1 };
    const EXTENTS: Extents = Extents::for_origin(LIMITS.origin_blocks);

    fn map(seq: u64, log_seq: u64, masks: &[u16]) -> Box<[u8; INTENT_MAP_BYTES]> {
        let mut out = Box::new([0xaa; INTENT_MAP_BYTES]);
        let header = IntentMap { seq, log_seq, extents: EXTENTS };
        header.encode(&mut out, LIMITS.region_uuid, masks.iter().copied(), |b| crc32c(0, b));
        out
    }

    fn log(seq: u64, runs: &[ExtentRun]) -> [u8; LOG_RECORD_BYTES] {
        let mut out = [0xaa; LOG_RECORD_BYTES];
        LogRecord::encode(&mut out, LIMITS.region_tag(), seq, EXTENTS, runs, |b| crc32c(0, b));
        out
    }

    #[test]
    fn extents_fit() {
        for (blocks, shift) in [
            (1, 6),
            (MAX_EXTENTS << 6, 6),
            ((MAX_EXTENTS << 6) + 1, 7),
            (1 << 28, 11), // 1 TiB: 8 MiB
            (1 << 48, 31),
        ] {
            let e = Extents::for_origin(blocks);
            assert_eq!((e.shift, u64::from(e.count)), (shift, blocks.div_ceil(1 << shift)));
            assert!(u64::from(e.count) <= MAX_EXTENTS);
            assert_eq!(e.of(blocks - 1, 1), (u64::from(e.count) - 1, 1));
        }
        let e = Extents { shift: 6, count: 10 };
        assert_eq!((e.of(63, 1), e.of(63, 2), e.of(64, 129)), ((0, 1), (0, 2), (1, 3)));
        assert_eq!(e.blocks(3), (192, 64));
    }

    #[test]
    fn map_round_trip_and_every_byte_counts() {
        let masks = [0xffff, 0, 0x8001, 7];
        let mut bytes = map(9, 4, &masks);
        let decoded = IntentMap::decode(&bytes[..], &LIMITS).unwrap();
        assert_eq!(decoded, IntentMap { seq: 9, log_seq: 4, extents: EXTENTS });
        assert!(IntentMap::masks(&bytes[..]).take(4).eq(masks));
        assert!(IntentMap::masks(&bytes[..]).skip(4).all(|m| m == 0));
        for i in (0..400).chain((400..INTENT_MAP_BYTES).step_by(97)) {
            bytes[i] ^= 0x10;
            assert!(IntentMap::decode(&bytes[..], &LIMITS).is_err(), "byte {i}");
            bytes[i] ^= 0x10;
        }
        assert!(IntentMap::decode(&bytes[..4096], &LIMITS).is_err());
    }

    #[test]
    fn map_fields_are_checked_behind_a_good_checksum() {
        let fault = |at: usize, value: u8| {
            let mut bytes = map(9, 4, &[1]);
            bytes[at] = value;
            let crc = with_hole(&bytes[..], MAP_CRC_AT);
            put_u32(&mut bytes[..], MAP_CRC_AT, crc);
            IntentMap::decode(&bytes[..], &LIMITS).map_err(|e| e.fault)
        };
        assert_eq!(fault(8, 2), Err(Fault::Version));
        assert_eq!(fault(23, 0x80), Err(Fault::Exhausted));
        assert_eq!(fault(47, 0x80), Err(Fault::Exhausted));
        assert_eq!(fault(24, 9), Err(Fault::Foreign));
        assert_eq!(fault(48, 7), Err(Fault::Origin));
        assert_eq!(fault(52, 0), Err(Fault::Origin));
        assert_eq!(fault(56, 1), Err(Fault::Reserved));
        assert_eq!(fault(127, 1), Err(Fault::Reserved));
        // 1563 extents: bits 3 to 7 of byte 195 are beyond.
        assert_eq!(EXTENTS.count, 1563);
        assert!(fault(MAP_HEADER_BYTES + 195, 4).is_ok());
        assert_eq!(fault(MAP_HEADER_BYTES + 195, 8), Err(Fault::Block));
        assert_eq!(fault(MAP_HEADER_BYTES + 196, 1), Err(Fault::Block));
        assert_eq!(fault(INTENT_MAP_BYTES - 1, 1), Err(Fault::Block));
    }

    #[test]
    fn picks_the_newer_map() {
        let (old, new) = (map(1, 0, &[]), map(2, 3, &[]));
        let picked = IntentMap::pick(&old[..], &new[..], &LIMITS).unwrap();
        assert_eq!((picked.copy, picked.value.log_seq), (Copy2::B, 3));
        let mut torn = new.clone();
        torn[20_000] ^= 1;
        let picked = IntentMap::pick(&torn[..], &old[..], &LIMITS).unwrap();
        assert_eq!((picked.copy, picked.value.seq), (Copy2::B, 1));
        assert!(IntentMap::pick(&torn[..], &torn[..], &LIMITS).is_err());
    }

    #[test]
    fn log_round_trip_and_every_byte_counts() {
        let runs: Vec<_> =
            (0..LOG_RUNS as u32).map(|i| ExtentRun { start: i * 3, len: 2 }).collect();
        for n in [0, 1, LOG_RUNS] {
            let mut bytes = log(77, &runs[..n]);
            let decoded = LogRecord::decode(&bytes, EXTENTS, LIMITS.region_tag()).unwrap();
            assert!(decoded.seq == 77 && decoded.runs().eq(runs[..n].iter().copied()));
            for i in 0..LOG_RECORD_BYTES {
                bytes[i] ^= 2;
                assert!(LogRecord::decode(&bytes, EXTENTS, LIMITS.region_tag()).is_err());
                bytes[i] ^= 2;
            }
        }
        let outside = |start, len| {
            let bytes = log(1, &[ExtentRun { start, len }]);
            LogRecord::decode(&bytes, EXTENTS, LIMITS.region_tag()).err().map(|e| e.fault)
        };
        assert_eq!(outside(1562, 1), None);
        for (start, len) in [(1562, 2), (0, 0), (u32::MAX, 2), (1563, 1)] {
            assert_eq!(outside(start, len), Some(Fault::Block));
        }
        let other = Extents { shift: 7, count: 5000 };
        let bytes = log(1, &[]);
        let refused = LogRecord::decode(&bytes, other, LIMITS.region_tag()).err().unwrap();
        assert_eq!(refused.fault, Fault::Origin);
        assert_eq!(LogRecord::decode(&bytes, EXTENTS, 1).err().unwrap().fault, Fault::Foreign);
    }

    /// A ring with these records, each adding the extent of its number.
    fn ring(seqs: impl IntoIterator<Item = u64>) -> Vec<u8> {
        let mut ring = vec![0; LOG_BLOCKS as usize * LOG_RECORD_BYTES];
        for seq in seqs {
            let at = (seq % LOG_BLOCKS) as usize * LOG_RECORD_BYTES;
            let run = ExtentRun { start: seq as u32 % 1000, len: 1 };
            ring[at..at + LOG_RECORD_BYTES].copy_from_slice(&log(seq, &[run]));
        }
        ring
    }

    #[test]
    fn replays_what_the_map_lacks() {
        let run = |ring: &[u8], log_seq| {
            let map = IntentMap { seq: 1, log_seq, extents: EXTENTS };
            let mut got = Vec::new();
            let r = replay(ring, &map, LIMITS.region_tag(), |run| got.push(run.start));
            (r.last_seq, r.gap, got)
        };
        assert_eq!(run(&ring([]), 0), (0, false, vec![]));
        assert_eq!(run(&ring(1..4), 0), (3, false, vec![1, 2, 3]));
        assert_eq!(run(&ring(1..4), 2), (3, false, vec![3]));
        assert_eq!(run(&ring(1..4), 3), (3, false, vec![]));
        // The ring is full, and wraps.
        assert_eq!(run(&ring(37..101), 36), (100, false, (37..101).collect()));
        assert_eq!(run(&ring(1..101), 90), (100, false, (91..101).collect()));
        // The last one was cut off.
        let mut torn = ring(1..5);
        torn[4 * LOG_RECORD_BYTES + 100] ^= 1;
        assert_eq!(run(&torn, 1), (3, false, vec![2, 3]));
        // One in the middle is damaged, or was overwritten already.
        let mut holed = ring(1..5);
        holed[2 * LOG_RECORD_BYTES + 100] ^= 1;
        assert_eq!(run(&holed, 0), (1, true, vec![1]));
        assert_eq!(run(&holed, 2), (4, false, vec![3, 4]));
        let (_, gap, _) = run(&ring(37..101), 20);
        assert!(gap);
    }
}
