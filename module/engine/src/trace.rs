// SPDX-License-Identifier: GPL-2.0-only

//! The trace file: recorded I/O, compact and readable as far as it was written.
//!
//! A header, then blocks. Each block stands for itself: its own base, count and CRC32C, and a sequence number, so
//! that a file cut short is read up to its last whole block and a hole does not go unnoticed. Within a block a record
//! is a tag and the differences from what the record before suggests, as variable-length integers: some 6 bytes
//! instead of 32. Formats and state only: the caller reads and writes files.

use core::fmt;

use crate::crc32c::with_hole;
use crate::record::{IoKind, IoRecord};
use crate::region::bytes::{put_u32, Reader, Writer};

/// Bytes of the header of a file.
pub const TRACE_HEADER_BYTES: usize = 64;
/// The first bytes of a trace file.
pub const TRACE_MAGIC: [u8; 8] = *b"PRESNAPT";
/// Version of the format.
pub const TRACE_VERSION: u32 = 1;
/// Bytes of the header of a block.
pub const BLOCK_HEADER_BYTES: usize = 40;
/// The magic number of a block, "PSTB".
pub const BLOCK_MAGIC: u32 = u32::from_le_bytes(*b"PSTB");
/// The largest block, header included; the smallest buffer that can read any file.
pub const MAX_BLOCK_BYTES: usize = 1 << 20;
/// The smallest buffer that takes a record: a header and the longest record.
pub const MIN_BLOCK_BYTES: usize = BLOCK_HEADER_BYTES + MAX_RECORD_BYTES;

/// A tag, three integers of up to 10 bytes and one of up to 5.
const MAX_RECORD_BYTES: usize = 36;
const HEADER_CRC_AT: usize = 12;
const BLOCK_CRC_AT: usize = 4;

/// The low bits of a tag are the kind of the record.
const TAG_KIND: u8 = 0x07;
/// The operation number is the expected one.
const TAG_OP: u8 = 0x08;
/// The sector is where the record before ended.
const TAG_SECTOR: u8 = 0x10;
/// The length is that of the record before.
const TAG_LENGTH: u8 = 0x20;

/// Trace flag: records were lost while recording.
pub const TRACE_LOSSY: u32 = 1;

/// Why a trace was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceError {
    /// The bytes end within the structure.
    Truncated,
    /// Not a trace file, or not a block of one.
    Magic,
    /// A version this engine does not know.
    Version,
    /// A wrong checksum.
    Checksum,
    /// Reserved bytes or unknown flags are set.
    Reserved,
    /// The length of a block cannot be.
    Length,
    /// A block is missing, or blocks are out of order.
    Sequence,
    /// A record that is not well-formed.
    Record,
}

impl TraceError {
    /// Returns the words for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Truncated => "the trace is cut short",
            Self::Magic => "this is not a presnap trace, or a block of it is damaged",
            Self::Version => "the trace has an unknown format version",
            Self::Checksum => "the trace has a wrong checksum",
            Self::Reserved => "the trace has reserved bytes or flags that are not zero",
            Self::Length => "a block of the trace has an impossible length",
            Self::Sequence => "a block of the trace is missing",
            Self::Record => "the trace has a malformed record",
        }
    }
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The header of a trace file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceHeader {
    /// [`TRACE_LOSSY`] or 0.
    pub flags: u32,
    /// Size of the device, 0 if not known.
    pub origin_sectors: u64,
    /// When recording began, nanoseconds since 1970, 0 if not known.
    pub start_realtime_ns: u64,
    /// When recording began on the clock of the records.
    pub start_ns: u64,
}

impl TraceHeader {
    /// Encodes it.
    pub fn encode(&self, out: &mut [u8; TRACE_HEADER_BYTES]) {
        let mut w = Writer::new(out);
        w.array(TRACE_MAGIC);
        w.u32(TRACE_VERSION);
        w.u32(0);
        w.u32(self.flags);
        w.u32(0);
        w.u64(self.origin_sectors);
        w.u64(self.start_realtime_ns);
        w.u64(self.start_ns);
        w.zero_rest();
        let crc = with_hole(out, HEADER_CRC_AT);
        put_u32(out, HEADER_CRC_AT, crc);
    }

    /// Decodes and checks it.
    pub fn decode(bytes: &[u8]) -> Result<Self, TraceError> {
        let header = bytes.first_chunk::<TRACE_HEADER_BYTES>().ok_or(TraceError::Truncated)?;
        let mut r = Reader::new(header);
        if r.array() != TRACE_MAGIC {
            return Err(TraceError::Magic);
        }
        let version = r.u32();
        if r.u32() != with_hole(header, HEADER_CRC_AT) {
            return Err(TraceError::Checksum);
        }
        if version != TRACE_VERSION {
            return Err(TraceError::Version);
        }
        let (flags, reserved) = (r.u32(), r.u32());
        let this =
            Self { flags, origin_sectors: r.u64(), start_realtime_ns: r.u64(), start_ns: r.u64() };
        if reserved != 0 || flags & !TRACE_LOSSY != 0 || !r.rest_is_zero() {
            return Err(TraceError::Reserved);
        }
        Ok(this)
    }
}

/// What the next record is expected to be.
#[derive(Clone, Copy, Debug)]
struct Context {
    time_ns: u64,
    op: u64,
    end_sector: u64,
    sectors: u32,
}

impl Context {
    fn expected_op(&self, kind: IoKind) -> u64 {
        self.op.wrapping_add(u64::from(kind.modifies()))
    }

    fn follow(&mut self, record: &IoRecord) {
        self.time_ns = record.time_ns;
        self.op = record.op;
        self.end_sector = record.sector.wrapping_add(u64::from(record.sectors));
        self.sectors = record.sectors;
    }
}

/// A difference as a number that is small if the difference is small, of either sign.
fn zigzag(to: u64, from: u64) -> u64 {
    let d = to.wrapping_sub(from) as i64;
    ((d << 1) ^ (d >> 63)) as u64
}

fn unzigzag(z: u64, from: u64) -> u64 {
    from.wrapping_add((z >> 1) ^ (z & 1).wrapping_neg())
}

/// A record being encoded.
struct Encoded {
    bytes: [u8; MAX_RECORD_BYTES],
    len: usize,
}

impl Encoded {
    fn byte(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
            self.len = self.len.wrapping_add(1);
        }
    }

    /// Seven bits a byte, the lowest first; the high bit says that more follow.
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.byte(value as u8 | 0x80);
            value >>= 7;
        }
        self.byte(value as u8);
    }
}

fn encode_record(record: &IoRecord, context: &Context) -> Encoded {
    let expected_op = context.expected_op(record.kind);
    let mut tag = record.kind as u8;
    if record.op == expected_op {
        tag |= TAG_OP;
    }
    if record.sector == context.end_sector {
        tag |= TAG_SECTOR;
    }
    if record.sectors == context.sectors {
        tag |= TAG_LENGTH;
    }
    let mut out = Encoded { bytes: [0; MAX_RECORD_BYTES], len: 0 };
    out.byte(tag);
    out.varint(zigzag(record.time_ns, context.time_ns));
    if tag & TAG_OP == 0 {
        out.varint(zigzag(record.op, expected_op));
    }
    if tag & TAG_SECTOR == 0 {
        out.varint(zigzag(record.sector, context.end_sector));
    }
    if tag & TAG_LENGTH == 0 {
        out.varint(u64::from(record.sectors));
    }
    out
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    let mut shift = 0u32;
    while shift < u64::BITS {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        // Of the tenth byte only the lowest bit fits.
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
        shift = shift.wrapping_add(7);
    }
    None
}

fn decode_record(bytes: &mut &[u8], context: &Context) -> Option<IoRecord> {
    let (&tag, rest) = bytes.split_first()?;
    *bytes = rest;
    if tag & !(TAG_KIND | TAG_OP | TAG_SECTOR | TAG_LENGTH) != 0 {
        return None;
    }
    let kind = IoKind::from_wire(tag & TAG_KIND)?;
    let mut field = |flag: u8, expected: u64| {
        if tag & flag != 0 {
            return Some(expected);
        }
        take_varint(bytes).map(|z| unzigzag(z, expected))
    };
    let time_ns = field(0, context.time_ns)?;
    let op = field(TAG_OP, context.expected_op(kind))?;
    let sector = field(TAG_SECTOR, context.end_sector)?;
    let sectors = if tag & TAG_LENGTH != 0 {
        context.sectors
    } else {
        u32::try_from(take_varint(bytes)?).ok()?
    };
    Some(IoRecord { time_ns, op, sector, sectors, kind })
}

/// Builds a block in a buffer of the caller.
pub struct BlockEncoder<'a> {
    out: &'a mut [u8],
    used: usize,
    count: u32,
    sequence: u32,
    /// Time and operation number of the first record.
    base: (u64, u64),
    context: Context,
}

impl<'a> BlockEncoder<'a> {
    /// Begins the block number `sequence` (from 0) of a file; `None` if the buffer is smaller than
    /// [`MIN_BLOCK_BYTES`]. At most [`MAX_BLOCK_BYTES`] of it are used.
    pub fn new(out: &'a mut [u8], sequence: u32) -> Option<Self> {
        let size = out.len().min(MAX_BLOCK_BYTES);
        let out = out.get_mut(..size).filter(|out| out.len() >= MIN_BLOCK_BYTES)?;
        let context = Context { time_ns: 0, op: 0, end_sector: 0, sectors: 0 };
        Some(Self { out, used: BLOCK_HEADER_BYTES, count: 0, sequence, base: (0, 0), context })
    }

    /// Returns the number of records so far.
    pub fn len(&self) -> u32 {
        self.count
    }

    /// Whether it has no records yet.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds a record; `false` if there is no room: finish this block and put it into the next.
    #[must_use]
    pub fn push(&mut self, record: &IoRecord) -> bool {
        let mut context = self.context;
        if self.count == 0 {
            context.time_ns = record.time_ns;
            context.op = record.op;
        }
        let encoded = encode_record(record, &context);
        let room = self.out.get_mut(self.used..).unwrap_or_default();
        if encoded.len > room.len() {
            return false;
        }
        for (to, from) in room.iter_mut().zip(encoded.bytes.iter().take(encoded.len)) {
            *to = *from;
        }
        if self.count == 0 {
            self.base = (record.time_ns, record.op);
        }
        self.context.follow(record);
        self.used = self.used.wrapping_add(encoded.len);
        self.count = self.count.wrapping_add(1);
        true
    }

    /// Completes the block and returns its length in bytes; 0, nothing to write, if it has no records.
    pub fn finish(self) -> usize {
        if self.count == 0 {
            return 0;
        }
        let payload = self.used.saturating_sub(BLOCK_HEADER_BYTES);
        let mut w = Writer::new(self.out);
        w.u32(BLOCK_MAGIC);
        w.u32(0);
        w.u32(payload as u32);
        w.u32(self.count);
        w.u32(self.sequence);
        w.u32(0);
        w.u64(self.base.0);
        w.u64(self.base.1);
        if let Some(block) = self.out.get_mut(..self.used) {
            let crc = with_hole(block, BLOCK_CRC_AT);
            put_u32(block, BLOCK_CRC_AT, crc);
        }
        self.used
    }
}

/// Returns the length in bytes of a whole block from its first [`BLOCK_HEADER_BYTES`].
pub fn block_bytes(header: &[u8]) -> Result<usize, TraceError> {
    let mut r = Reader::new(header.get(..BLOCK_HEADER_BYTES).ok_or(TraceError::Truncated)?);
    if r.u32() != BLOCK_MAGIC {
        return Err(TraceError::Magic);
    }
    r.u32();
    let payload = r.u32() as usize;
    let total = payload.saturating_add(BLOCK_HEADER_BYTES);
    if payload == 0 || total > MAX_BLOCK_BYTES {
        return Err(TraceError::Length);
    }
    Ok(total)
}

/// Checks the block number `sequence` at the start of `bytes`; returns its records and its length in bytes.
pub fn decode_block(bytes: &[u8], sequence: u32) -> Result<(Records<'_>, usize), TraceError> {
    let total = block_bytes(bytes)?;
    let block = bytes.get(..total).ok_or(TraceError::Truncated)?;
    let mut r = Reader::new(block);
    r.u32();
    if r.u32() != with_hole(block, BLOCK_CRC_AT) {
        return Err(TraceError::Checksum);
    }
    r.u32();
    let (count, stored_sequence, reserved) = (r.u32(), r.u32(), r.u32());
    if reserved != 0 {
        return Err(TraceError::Reserved);
    }
    if stored_sequence != sequence {
        return Err(TraceError::Sequence);
    }
    let payload = block.get(BLOCK_HEADER_BYTES..).ok_or(TraceError::Truncated)?;
    let (time_ns, op) = (r.u64(), r.u64());
    let context = Context { time_ns, op, end_sector: 0, sectors: 0 };
    Ok((Records { payload, left: count, context, first: true }, total))
}

/// The records of a checked block. After an error there are no more.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    payload: &'a [u8],
    left: u32,
    context: Context,
    first: bool,
}

impl Iterator for Records<'_> {
    type Item = Result<IoRecord, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            // What follows the last record is not part of the format.
            let rest = core::mem::take(&mut self.payload);
            return (!rest.is_empty()).then_some(Err(TraceError::Record));
        }
        let Some(record) = decode_record(&mut self.payload, &self.context) else {
            self.left = 0;
            self.payload = &[];
            return Some(Err(TraceError::Record));
        };
        if core::mem::take(&mut self.first)
            && (record.time_ns, record.op) != (self.context.time_ns, self.context.op)
        {
            self.left = 0;
            self.payload = &[];
            return Some(Err(TraceError::Record));
        }
        self.context.follow(&record);
        self.left = self.left.saturating_sub(1);
        Some(Ok(record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<IoRecord> {
        let kind = |n| IoKind::from_wire(n).unwrap();
        let mut all: Vec<_> = (0..500u64)
            .map(|i| IoRecord {
                time_ns: 1_000_000_000 + i * 12_345 - (i % 7) * 20_000,
                op: i / 2,
                sector: if i % 3 == 0 { i * 977 % 100_000 } else { i * 8 },
                sectors: 8 << (i % 2),
                kind: kind((i % 5) as u8),
            })
            .collect();
        let extreme = IoRecord {
            time_ns: u64::MAX,
            op: u64::MAX,
            sector: u64::MAX,
            sectors: u32::MAX,
            kind: IoKind::Write,
        };
        all.push(extreme);
        all.push(IoRecord { time_ns: 0, op: 0, sector: 0, sectors: 0, kind: IoKind::Flush });
        all.push(IoRecord { time_ns: 1 << 63, op: 1 << 63, sector: 1 << 62, ..extreme });
        all
    }

    fn encode(records: &[IoRecord], size: usize) -> Vec<u8> {
        let mut file = Vec::new();
        let mut buffer = vec![0xaa; size];
        let mut sequence = 0;
        let mut left = records;
        while !left.is_empty() {
            let mut block = BlockEncoder::new(&mut buffer, sequence).unwrap();
            while left.first().is_some_and(|record| block.push(record)) {
                left = &left[1..];
            }
            assert!(!block.is_empty());
            let len = block.finish();
            file.extend_from_slice(&buffer[..len]);
            sequence += 1;
        }
        file
    }

    fn decode(mut file: &[u8]) -> (Vec<IoRecord>, Option<TraceError>) {
        let mut records = Vec::new();
        let mut sequence = 0;
        while !file.is_empty() {
            match decode_block(file, sequence) {
                Ok((block, len)) => {
                    assert_eq!(block_bytes(file), Ok(len));
                    for record in block {
                        match record {
                            Ok(record) => records.push(record),
                            Err(e) => return (records, Some(e)),
                        }
                    }
                    file = &file[len..];
                }
                Err(e) => return (records, Some(e)),
            }
            sequence += 1;
        }
        (records, None)
    }

    #[test]
    fn round_trip_in_blocks_of_any_size() {
        for size in [MIN_BLOCK_BYTES, 100, 1000, 1 << 21] {
            let file = encode(&records(), size);
            assert_eq!(decode(&file), (records(), None));
        }
        let file = encode(&records()[..500], 4096);
        assert!(file.len() < 500 * 9, "{} bytes", file.len());
        assert!(BlockEncoder::new(&mut [0; MIN_BLOCK_BYTES - 1], 0).is_none());
        assert_eq!(BlockEncoder::new(&mut [0; 100], 0).unwrap().finish(), 0);
    }

    #[test]
    fn readable_up_to_the_cut() {
        let file = encode(&records(), 300);
        let (all, _) = decode(&file);
        for cut in (0..file.len()).step_by(37) {
            let (some, error) = decode(&file[..cut]);
            assert!(all.starts_with(&some));
            assert!(error.is_none_or(|e| e == TraceError::Truncated));
        }
    }

    #[test]
    fn damage_is_found() {
        let mut file = encode(&records()[..40], 200);
        for at in 0..file.len() {
            file[at] ^= 0x02;
            assert!(decode(&file).1.is_some(), "byte {at}");
            file[at] ^= 0x02;
        }
        let first = block_bytes(&file).unwrap();
        assert_eq!(decode(&file[first..]).1, Some(TraceError::Sequence));
    }

    #[test]
    fn malformed_records_behind_a_good_checksum() {
        let good = encode(&records()[..1], 200);
        let refused = |payload: &[u8], count: u32| {
            let mut block = [&good[..BLOCK_HEADER_BYTES], payload].concat();
            put_u32(&mut block, 8, payload.len() as u32);
            put_u32(&mut block, 12, count);
            let crc = with_hole(&block, BLOCK_CRC_AT);
            put_u32(&mut block, BLOCK_CRC_AT, crc);
            let (records, error) = decode(&block);
            assert_eq!(error, Some(TraceError::Record), "{payload:?}");
            records.len()
        };
        assert_eq!(refused(&[0x3d, 0], 1), 0); // kind 5
        assert_eq!(refused(&[0x78, 0], 1), 0); // unknown tag bits
        assert_eq!(refused(&[0x38, 2], 1), 0); // not the base time
        assert_eq!(refused(&[0x38], 1), 0);
        assert_eq!(refused(&[0x38, 0, 9], 1), 1); // more bytes than records
        assert_eq!(refused(&[0x38, 0], 2), 1); // more records than bytes
        assert_eq!(refused(&[0x18, 0, 0xff, 0xff, 0xff, 0xff, 0x7f], 1), 0); // length above 32 bits
        assert_eq!(refused(&[[0x38].as_slice(), &[0xff; 10]].concat(), 1), 0);
        for payload in [0, MAX_BLOCK_BYTES as u32, u32::MAX] {
            let mut block = good.clone();
            put_u32(&mut block, 8, payload);
            assert_eq!(block_bytes(&block), Err(TraceError::Length));
        }
        assert_eq!(block_bytes(&good[..39]), Err(TraceError::Truncated));
    }

    #[test]
    fn file_header() {
        let header = TraceHeader {
            flags: TRACE_LOSSY,
            origin_sectors: 1,
            start_realtime_ns: u64::MAX,
            start_ns: 3,
        };
        let mut bytes = [0xaa; TRACE_HEADER_BYTES];
        header.encode(&mut bytes);
        assert_eq!(TraceHeader::decode(&bytes), Ok(header));
        for at in 0..bytes.len() {
            bytes[at] ^= 0x80;
            assert!(TraceHeader::decode(&bytes).is_err(), "byte {at}");
            bytes[at] ^= 0x80;
        }
        assert_eq!(TraceHeader::decode(&bytes[..63]), Err(TraceError::Truncated));
        for (at, error) in [
            (8, TraceError::Version),
            (17, TraceError::Reserved),
            (20, TraceError::Reserved),
            (63, TraceError::Reserved),
        ] {
            let mut bad = bytes;
            bad[at] = 9;
            let crc = with_hole(&bad, HEADER_CRC_AT);
            put_u32(&mut bad, HEADER_CRC_AT, crc);
            assert_eq!(TraceHeader::decode(&bad), Err(error));
        }
    }
}
