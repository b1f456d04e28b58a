// SPDX-License-Identifier: GPL-2.0-only

//! The replication stream: one snapshot, as a delta to its base or in full, from `send` to `receive`.
//!
//! A header, records in ascending block order, an end record. Every record carries its sequence number, the checksum
//! of its data, and a *chain*: the checksum of all record headers so far, begun with that of the stream header. So
//! truncation, reordering, repetition, splicing and corruption are all found. An interrupted stream is resumed at a
//! [`ResumePoint`]. The idea of a tagged, forward-only diff is that of `rbd export-diff`; base check and
//! resume are those of `zfs send`. Formats and state only: the caller moves the bytes.

use core::fmt;

use crate::crc32c::{crc32c, with_hole};
use crate::geometry::{BLOCK_BYTES, BLOCK_SECTORS_SHIFT};
use crate::region::bytes::{put_u32, Reader, Writer};
use crate::region::MAX_ORIGIN_BLOCKS;

pub mod receiver;
pub mod replica;

pub use receiver::{Action, Event, Need, Receiver};
pub use replica::Replica;

/// Bytes of the header of a stream.
pub const STREAM_HEADER_BYTES: usize = 128;
/// Bytes of the header of a record.
pub const RECORD_HEADER_BYTES: usize = 40;
/// The first bytes of a stream.
pub const STREAM_MAGIC: [u8; 8] = *b"PRESNAPS";
/// Version of the format.
pub const STREAM_VERSION: u32 = 1;
/// Blocks that a data record can carry (256 KiB).
pub const MAX_DATA_BLOCKS: u32 = 64;

/// Stream flag: the whole image, to be applied on anything.
pub const STREAM_FULL: u32 = 1;
/// Stream flag: the delta may contain blocks that were not written.
pub const STREAM_SUPERSET: u32 = 2;

const CRC_AT: usize = 12;
/// Offsets in a record header, and so the lengths of what the chain and the header checksum cover.
const CHAIN_AT: usize = 28;
const RECORD_CRC_AT: usize = 32;

/// Why a stream, or a replica's record, was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamError {
    /// Not a replication stream.
    Magic,
    /// A format version this engine does not know.
    Version,
    /// The header has a wrong checksum.
    HeaderChecksum,
    /// The header contradicts itself.
    Header,
    /// The caller handed in another number of bytes than was asked for.
    Length,
    /// The stream ends before its end record.
    Truncated,
    /// Bytes follow the end record.
    Trailing,
    /// The header of a record has a wrong checksum.
    RecordChecksum,
    /// A record has an unknown tag, or fields that do not go with it.
    Record,
    /// A record is missing, repeated or out of order.
    Sequence {
        /// The number that should come.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// A record does not follow from those before it: it is of another stream.
    Chain,
    /// Blocks do not ascend.
    Order,
    /// A block outside of the origin.
    Range,
    /// The data of a record have a wrong checksum.
    DataChecksum {
        /// The first block of the record.
        start_block: u64,
    },
    /// The stream carried another number of blocks than it announced.
    Total {
        /// Blocks announced.
        announced: u64,
        /// Blocks carried.
        carried: u64,
    },
    /// A step after an error, or after the end.
    Finished,
    /// The replica is empty: it needs a full stream first.
    NoBase,
    /// The replica is a copy of another origin.
    OtherOrigin,
    /// The replica holds another snapshot than the base.
    BaseMismatch {
        /// The base of the stream.
        base: u32,
        /// What the replica holds.
        replica: u32,
    },
    /// The replica holds the snapshot already.
    AlreadyThere {
        /// The snapshot.
        snapshot: u32,
    },
    /// The replica is in the middle of receiving another snapshot.
    Receiving {
        /// That snapshot.
        snapshot: u32,
    },
    /// A resumed stream begins elsewhere than the replica stopped.
    ResumeMismatch,
    /// The origin is smaller than the replica's record says: a full stream is needed.
    SizeChanged,
    /// The replica is smaller than the origin.
    TooSmall {
        /// Sectors needed.
        origin_sectors: u64,
        /// Sectors there are.
        replica_sectors: u64,
    },
    /// A full stream would overwrite a copy of another origin, and that was not allowed.
    WouldOverwrite,
    /// The replica's own record is damaged.
    ReplicaRecord,
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match *self {
            Self::Magic => "this is not a presnap stream",
            Self::Version => "the stream has an unknown format version",
            Self::HeaderChecksum => "the stream header has a wrong checksum",
            Self::Header => "the stream header contradicts itself",
            Self::Length => "a part of the stream has the wrong length",
            Self::Truncated => "the stream is cut short",
            Self::Trailing => "bytes follow the end of the stream",
            Self::RecordChecksum => "a record header of the stream has a wrong checksum",
            Self::Record => "the stream has a malformed record",
            Self::Sequence { expected, found } => {
                return write!(
                    f,
                    "a record is missing, repeated or out of order: number {found} came instead of {expected}"
                )
            }
            Self::Chain => "a record does not belong to this stream",
            Self::Order => "the blocks of the stream do not ascend",
            Self::Range => "the stream has a block outside of the origin",
            Self::DataChecksum { start_block } => {
                return write!(f, "the data from block {start_block} on have a wrong checksum")
            }
            Self::Total { announced, carried } => {
                return write!(f, "the stream announced {announced} blocks and carried {carried}")
            }
            Self::Finished => "the stream is over",
            Self::NoBase => "the replica is empty: send a full stream first",
            Self::OtherOrigin => "the replica is a copy of another origin",
            Self::BaseMismatch { base, replica } => {
                return write!(
                    f,
                    "the stream is based on snapshot {base}, the replica holds snapshot {replica}"
                )
            }
            Self::AlreadyThere { snapshot } => {
                return write!(f, "the replica holds snapshot {snapshot} already")
            }
            Self::Receiving { snapshot } => {
                return write!(
                    f,
                    "the replica is in the middle of receiving snapshot {snapshot}: resume or repeat that, or send a full stream"
                )
            }
            Self::ResumeMismatch => "the stream resumes elsewhere than the replica stopped",
            Self::SizeChanged => "the origin is smaller than it was: send a full stream",
            Self::TooSmall { origin_sectors, replica_sectors } => {
                return write!(
                    f,
                    "the replica is too small: {replica_sectors} sectors, the origin has {origin_sectors}; enlarge the replica first"
                )
            }
            Self::WouldOverwrite => "the replica is a copy of another origin, overwriting it was not allowed",
            Self::ReplicaRecord => "the record of the replica is damaged",
        };
        f.write_str(words)
    }
}

/// A place between two records where a stream can be taken up again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResumePoint {
    /// Sequence number of the next record; 0: from the start.
    pub sequence: u64,
    /// The chain after the last record.
    pub chain: u32,
    /// Blocks carried so far.
    pub blocks: u64,
    /// All blocks below this are done.
    pub next_block: u64,
}

impl ResumePoint {
    /// The start of a stream.
    pub const START: Self = Self { sequence: 0, chain: 0, blocks: 0, next_block: 0 };

    fn encode(&self, w: &mut Writer<'_>) {
        w.u64(self.sequence);
        w.u64(self.blocks);
        w.u64(self.next_block);
        w.u32(self.chain);
    }

    fn decode(r: &mut Reader<'_>) -> Self {
        let (sequence, blocks, next_block, chain) = (r.u64(), r.u64(), r.u64(), r.u32());
        Self { sequence, chain, blocks, next_block }
    }

    /// Whether it can be a point of a stream of `total_blocks` of `origin_blocks` blocks.
    fn plausible(&self, total_blocks: u64, origin_blocks: u64) -> bool {
        // Each record has at least one block.
        (self.sequence != 0 || *self == Self::START)
            && self.sequence <= self.blocks
            && self.blocks <= self.next_block.min(total_blocks)
            && self.next_block <= origin_blocks
    }
}

/// The header of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamHeader {
    /// [`STREAM_FULL`] | [`STREAM_SUPERSET`].
    pub flags: u32,
    /// Identity of the region that the snapshot comes from.
    pub region_uuid: [u8; 16],
    /// Identity of the origin, all zero if it has none.
    pub origin_id: [u8; 16],
    /// Size of the origin.
    pub origin_sectors: u64,
    /// The snapshot.
    pub snapshot: u32,
    /// The snapshot that the delta applies to; 0 in a full stream.
    pub base: u32,
    /// First operation of the generation.
    pub op_first: u64,
    /// Last operation of the generation.
    pub op_last: u64,
    /// Time of T0, nanoseconds since 1970.
    pub t0_realtime_ns: u64,
    /// Blocks that the stream carries in all, those before the resume point included.
    pub total_blocks: u64,
    /// Where the stream begins.
    pub start: ResumePoint,
}

impl StreamHeader {
    /// Whether this is a full stream.
    pub const fn is_full(&self) -> bool {
        self.flags & STREAM_FULL != 0
    }

    /// Returns the number of blocks of the origin, the last one perhaps in part.
    pub const fn origin_blocks(&self) -> u64 {
        self.origin_sectors.div_ceil(1 << BLOCK_SECTORS_SHIFT)
    }

    /// Returns the sectors of a run of blocks, as (sector, sectors), without what lies beyond the end of the origin.
    ///
    /// A data record always carries whole blocks; the rest of the last one is filled with zeros.
    pub fn sectors_of(&self, start_block: u64, blocks: u32) -> (u64, u64) {
        let start = start_block.saturating_mul(1 << BLOCK_SECTORS_SHIFT).min(self.origin_sectors);
        let length = u64::from(blocks) << BLOCK_SECTORS_SHIFT;
        (start, length.min(self.origin_sectors.saturating_sub(start)))
    }

    /// Encodes it.
    pub fn encode(&self, out: &mut [u8; STREAM_HEADER_BYTES]) {
        let mut w = Writer::new(out);
        w.array(STREAM_MAGIC);
        w.u32(STREAM_VERSION);
        w.u32(0);
        w.u32(self.flags);
        w.u32(self.snapshot);
        w.u32(self.base);
        w.array(self.region_uuid);
        w.array(self.origin_id);
        w.u64(self.origin_sectors);
        w.u64(self.op_first);
        w.u64(self.op_last);
        w.u64(self.t0_realtime_ns);
        w.u64(self.total_blocks);
        self.start.encode(&mut w);
        w.zero_rest();
        let crc = with_hole(out, CRC_AT);
        put_u32(out, CRC_AT, crc);
    }

    /// Decodes and checks it.
    pub fn decode(bytes: &[u8]) -> Result<Self, StreamError> {
        let header = bytes.first_chunk::<STREAM_HEADER_BYTES>().ok_or(StreamError::Length)?;
        let mut r = Reader::new(header);
        if r.array() != STREAM_MAGIC {
            return Err(StreamError::Magic);
        }
        let version = r.u32();
        if r.u32() != with_hole(header, CRC_AT) {
            return Err(StreamError::HeaderChecksum);
        }
        if version != STREAM_VERSION {
            return Err(StreamError::Version);
        }
        let (flags, snapshot, base) = (r.u32(), r.u32(), r.u32());
        let this = Self {
            flags,
            snapshot,
            base,
            region_uuid: r.array(),
            origin_id: r.array(),
            origin_sectors: r.u64(),
            op_first: r.u64(),
            op_last: r.u64(),
            t0_realtime_ns: r.u64(),
            total_blocks: r.u64(),
            start: ResumePoint::decode(&mut r),
        };
        let origin_blocks = this.origin_blocks();
        let consistent = r.rest_is_zero()
            && flags & !(STREAM_FULL | STREAM_SUPERSET) == 0
            && snapshot != 0
            && base < snapshot
            && this.is_full() == (base == 0)
            && this.op_first <= this.op_last.saturating_add(1)
            && this.region_uuid != [0; 16]
            && this.origin_sectors != 0
            && origin_blocks <= MAX_ORIGIN_BLOCKS
            && this.total_blocks <= origin_blocks
            && this.start.plausible(this.total_blocks, origin_blocks);
        if !consistent {
            return Err(StreamError::Header);
        }
        Ok(this)
    }

    /// Returns the chain before the first record: it binds the records to what is sent, on resuming to what was sent.
    fn initial_chain(&self) -> u32 {
        if self.start != ResumePoint::START {
            return self.start.chain;
        }
        let mut bytes = [0; STREAM_HEADER_BYTES];
        self.encode(&mut bytes);
        crc32c(0, &bytes)
    }
}

/// What a record is. The numbers are the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Tag {
    Data = 1,
    Zero = 2,
    Discard = 3,
    End = 4,
}

impl Tag {
    const fn from_wire(n: u8) -> Option<Self> {
        match n {
            1 => Some(Self::Data),
            2 => Some(Self::Zero),
            3 => Some(Self::Discard),
            4 => Some(Self::End),
            _ => None,
        }
    }
}

/// The header of a record.
#[derive(Clone, Copy, Debug)]
struct RecordHeader {
    tag: Tag,
    /// Number of blocks; 0 in the end record.
    blocks: u32,
    /// First block; in the end record, the blocks carried in all.
    start_block: u64,
    sequence: u64,
    data_crc: u32,
}

impl RecordHeader {
    /// Encodes it behind `chain` and returns the new chain too.
    fn encode(&self, chain: u32) -> ([u8; RECORD_HEADER_BYTES], u32) {
        let mut out = [0; RECORD_HEADER_BYTES];
        let mut w = Writer::new(&mut out);
        w.u8(self.tag as u8);
        w.array([0; 3]);
        w.u32(self.blocks);
        w.u64(self.start_block);
        w.u64(self.sequence);
        w.u32(self.data_crc);
        let chain = crc32c(chain, out.get(..CHAIN_AT).unwrap_or(&[]));
        put_u32(&mut out, CHAIN_AT, chain);
        let crc = crc32c(0, out.get(..RECORD_CRC_AT).unwrap_or(&[]));
        put_u32(&mut out, RECORD_CRC_AT, crc);
        (out, chain)
    }

    /// Decodes it and checks what can be told from it alone; returns the stored chain too.
    fn decode(bytes: &[u8; RECORD_HEADER_BYTES]) -> Result<(Self, u32), StreamError> {
        let mut r = Reader::new(bytes);
        let (tag, reserved) = (r.u8(), r.array::<3>());
        let (blocks, start_block, sequence) = (r.u32(), r.u64(), r.u64());
        let (data_crc, chain, crc) = (r.u32(), r.u32(), r.u32());
        if crc != crc32c(0, bytes.get(..RECORD_CRC_AT).unwrap_or(&[])) {
            return Err(StreamError::RecordChecksum);
        }
        let tag = Tag::from_wire(tag).ok_or(StreamError::Record)?;
        let fits = match tag {
            Tag::Data => (1..=MAX_DATA_BLOCKS).contains(&blocks),
            Tag::Zero | Tag::Discard => blocks != 0 && data_crc == 0,
            Tag::End => blocks == 0 && data_crc == 0,
        };
        if !fits || reserved != [0; 3] || !r.rest_is_zero() {
            return Err(StreamError::Record);
        }
        Ok((Self { tag, blocks, start_block, sequence, data_crc }, chain))
    }
}

/// Moves a point over a run of blocks, if the run is in order and in range.
fn advance(
    point: &ResumePoint,
    header: &StreamHeader,
    start_block: u64,
    blocks: u32,
) -> Result<ResumePoint, StreamError> {
    if start_block < point.next_block {
        return Err(StreamError::Order);
    }
    let next_block = start_block.checked_add(u64::from(blocks)).ok_or(StreamError::Range)?;
    if next_block > header.origin_blocks() {
        return Err(StreamError::Range);
    }
    let carried = point.blocks.saturating_add(u64::from(blocks));
    if carried > header.total_blocks {
        return Err(StreamError::Total { announced: header.total_blocks, carried });
    }
    Ok(ResumePoint {
        sequence: point.sequence.saturating_add(1),
        blocks: carried,
        next_block,
        chain: point.chain,
    })
}

/// Makes the record headers of a stream.
#[derive(Clone, Copy, Debug)]
pub struct Encoder {
    header: StreamHeader,
    point: ResumePoint,
    over: bool,
}

impl Encoder {
    /// Begins the stream of a header; the caller has sent [`StreamHeader::encode`].
    pub fn new(header: &StreamHeader) -> Self {
        let point = ResumePoint { chain: header.initial_chain(), ..header.start };
        Self { header: *header, point, over: false }
    }

    /// Returns where the stream is: the next block to send is not below `next_block`.
    pub fn position(&self) -> ResumePoint {
        self.point
    }

    fn record(
        &mut self,
        tag: Tag,
        start_block: u64,
        blocks: u32,
        data_crc: u32,
    ) -> Result<[u8; RECORD_HEADER_BYTES], StreamError> {
        if self.over {
            return Err(StreamError::Finished);
        }
        let most = if tag == Tag::Data { MAX_DATA_BLOCKS } else { u32::MAX };
        if !(1..=most).contains(&blocks) {
            return Err(StreamError::Record);
        }
        let mut point = advance(&self.point, &self.header, start_block, blocks)?;
        let sequence = self.point.sequence;
        let record = RecordHeader { tag, blocks, start_block, sequence, data_crc };
        let (bytes, chain) = record.encode(self.point.chain);
        point.chain = chain;
        self.point = point;
        Ok(bytes)
    }

    /// Returns the header of a record of 1 to [`MAX_DATA_BLOCKS`] blocks; their bytes, whose CRC32C is `data_crc`, follow it.
    pub fn data(
        &mut self,
        start_block: u64,
        blocks: u32,
        data_crc: u32,
    ) -> Result<[u8; RECORD_HEADER_BYTES], StreamError> {
        self.record(Tag::Data, start_block, blocks, data_crc)
    }

    /// Returns the record of blocks that are zero; `discarded`: because they were discarded.
    pub fn zero(
        &mut self,
        start_block: u64,
        blocks: u32,
        discarded: bool,
    ) -> Result<[u8; RECORD_HEADER_BYTES], StreamError> {
        let tag = if discarded { Tag::Discard } else { Tag::Zero };
        self.record(tag, start_block, blocks, 0)
    }

    /// Returns the end record; all announced blocks must have been sent.
    pub fn end(&mut self) -> Result<[u8; RECORD_HEADER_BYTES], StreamError> {
        let (announced, carried) = (self.header.total_blocks, self.point.blocks);
        if self.over {
            return Err(StreamError::Finished);
        }
        if announced != carried {
            return Err(StreamError::Total { announced, carried });
        }
        self.over = true;
        let record = RecordHeader {
            tag: Tag::End,
            blocks: 0,
            start_block: carried,
            sequence: self.point.sequence,
            data_crc: 0,
        };
        let (bytes, chain) = record.encode(self.point.chain);
        self.point.chain = chain;
        Ok(bytes)
    }
}

/// Returns the bytes of the data of a record.
const fn data_bytes(blocks: u32) -> usize {
    blocks as usize * BLOCK_BYTES as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn header() -> StreamHeader {
        StreamHeader {
            flags: STREAM_SUPERSET,
            region_uuid: [7; 16],
            origin_id: [0; 16],
            origin_sectors: 8003,
            snapshot: 5,
            base: 4,
            op_first: 100,
            op_last: 200,
            t0_realtime_ns: 1,
            total_blocks: 10,
            start: ResumePoint::START,
        }
    }

    #[test]
    fn header_round_trip_and_every_byte_counts() {
        let start = ResumePoint { sequence: 2, chain: 77, blocks: 3, next_block: 9 };
        for header in [header(), StreamHeader { start, ..header() }] {
            let mut bytes = [0xaa; STREAM_HEADER_BYTES];
            header.encode(&mut bytes);
            assert_eq!(StreamHeader::decode(&bytes), Ok(header));
            for at in 0..bytes.len() {
                bytes[at] ^= 0x20;
                assert!(StreamHeader::decode(&bytes).is_err(), "byte {at}");
                bytes[at] ^= 0x20;
            }
            assert_eq!(StreamHeader::decode(&bytes[1..]), Err(StreamError::Length));
        }
    }

    #[test]
    fn header_must_be_consistent() {
        let refused = |change: fn(&mut StreamHeader)| {
            let mut header = header();
            change(&mut header);
            let mut bytes = [0; STREAM_HEADER_BYTES];
            header.encode(&mut bytes);
            assert_eq!(StreamHeader::decode(&bytes), Err(StreamError::Header), "{header:?}");
        };
        refused(|h| h.flags = 4);
        refused(|h| h.snapshot = 0);
        refused(|h| h.base = 5);
        refused(|h| h.base = 0);
        refused(|h| h.flags = STREAM_FULL);
        refused(|h| h.op_first = 202);
        refused(|h| h.region_uuid = [0; 16]);
        refused(|h| h.origin_sectors = 0);
        refused(|h| h.origin_sectors = u64::MAX);
        refused(|h| h.total_blocks = 1002);
        refused(|h| h.start.chain = 1);
        refused(|h| h.start = ResumePoint { sequence: 2, chain: 0, blocks: 1, next_block: 5 });
        refused(|h| h.start = ResumePoint { sequence: 1, chain: 0, blocks: 11, next_block: 50 });
        refused(|h| h.start = ResumePoint { sequence: 1, chain: 0, blocks: 5, next_block: 4 });
        refused(|h| h.start = ResumePoint { sequence: 1, chain: 0, blocks: 5, next_block: 1002 });
    }

    #[test]
    fn encoder_refuses_what_the_receiver_would() {
        let mut e = Encoder::new(&header());
        assert_eq!(e.data(5, 0, 0), Err(StreamError::Record));
        assert_eq!(e.data(5, 65, 0), Err(StreamError::Record));
        assert_eq!(e.data(1000, 2, 0), Err(StreamError::Range));
        assert_eq!(e.zero(u64::MAX, 1, false), Err(StreamError::Range));
        assert!(e.data(5, 4, 0).is_ok());
        assert_eq!(e.zero(8, 1, false), Err(StreamError::Order));
        let short = StreamError::Total { announced: 10, carried: 4 };
        assert_eq!(e.end(), Err(short));
        assert!(matches!(e.zero(9, 7, false), Err(StreamError::Total { .. })));
        assert!(e.zero(9, 6, true).is_ok());
        assert_eq!((e.position().sequence, e.position().next_block), (2, 15));
        assert!(e.end().is_ok());
        assert_eq!(e.end(), Err(StreamError::Finished));
        assert_eq!(e.zero(20, 1, true), Err(StreamError::Finished));
    }

    #[test]
    fn last_block_is_clipped() {
        let h = header();
        assert_eq!(h.origin_blocks(), 1001);
        assert_eq!(h.sectors_of(0, 2), (0, 16));
        assert_eq!(h.sectors_of(999, 2), (7992, 11));
        assert_eq!(h.sectors_of(1000, 1), (8000, 3));
        assert_eq!(h.sectors_of(u64::MAX, u32::MAX), (8003, 0));
    }
}
