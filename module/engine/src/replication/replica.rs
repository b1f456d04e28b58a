// SPDX-License-Identifier: GPL-2.0-only

//! What a replica holds: the durable record on the receiving side, and the check of a stream against it.

use super::{ResumePoint, StreamError, StreamHeader};
use crate::crc32c::with_hole;
use crate::region::bytes::{put_u32, Reader, Writer};

/// Bytes of an encoded record.
pub const REPLICA_BYTES: usize = 128;
/// Its first bytes.
pub const REPLICA_MAGIC: [u8; 8] = *b"PRESNAPC";
/// Version of the format.
pub const REPLICA_VERSION: u32 = 1;

const CRC_AT: usize = 12;

/// What a replica holds. An empty one is [`Replica::default`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replica {
    /// The region whose snapshots it holds; all zero if it is empty.
    pub region_uuid: [u8; 16],
    /// Size of the origin.
    pub origin_sectors: u64,
    /// The snapshot it holds whole, 0 if none. While receiving, the base.
    pub snapshot: u32,
    /// The snapshot it is receiving, 0 if none: then its content is between the two.
    pub receiving: u32,
    /// How far that is; all below is durable.
    pub point: ResumePoint,
    /// Blocks of the stream being received.
    pub total_blocks: u64,
    /// Last operation of the snapshot held.
    pub op_last: u64,
    /// T0 of the snapshot held, nanoseconds since 1970.
    pub t0_realtime_ns: u64,
}

impl Replica {
    /// Encodes it.
    pub fn encode(&self, out: &mut [u8; REPLICA_BYTES]) {
        let mut w = Writer::new(out);
        w.array(REPLICA_MAGIC);
        w.u32(REPLICA_VERSION);
        w.u32(0);
        w.array(self.region_uuid);
        w.u64(self.origin_sectors);
        w.u32(self.snapshot);
        w.u32(self.receiving);
        w.u64(self.total_blocks);
        w.u64(self.op_last);
        w.u64(self.t0_realtime_ns);
        self.point.encode(&mut w);
        w.zero_rest();
        let crc = with_hole(out, CRC_AT);
        put_u32(out, CRC_AT, crc);
    }

    /// Decodes and checks it.
    pub fn decode(bytes: &[u8]) -> Result<Self, StreamError> {
        let bytes = bytes.first_chunk::<REPLICA_BYTES>().ok_or(StreamError::ReplicaRecord)?;
        let mut r = Reader::new(bytes);
        if r.array() != REPLICA_MAGIC {
            return Err(StreamError::ReplicaRecord);
        }
        let version = r.u32();
        if r.u32() != with_hole(bytes, CRC_AT) {
            return Err(StreamError::ReplicaRecord);
        }
        if version != REPLICA_VERSION {
            return Err(StreamError::Version);
        }
        let region_uuid = r.array();
        let (origin_sectors, snapshot, receiving) = (r.u64(), r.u32(), r.u32());
        let (total_blocks, op_last, t0_realtime_ns) = (r.u64(), r.u64(), r.u64());
        let point = ResumePoint::decode(&mut r);
        let this = Self {
            region_uuid,
            origin_sectors,
            snapshot,
            receiving,
            point,
            total_blocks,
            op_last,
            t0_realtime_ns,
        };
        let busy = receiving != 0;
        let empty = region_uuid == [0; 16];
        let consistent = r.rest_is_zero()
            && (!busy || snapshot < receiving)
            && (busy || point == ResumePoint::START)
            && (!empty || this == Self::default())
            && (empty || busy || snapshot != 0)
            && point.plausible(total_blocks, origin_sectors.div_ceil(8));
        if !consistent {
            return Err(StreamError::ReplicaRecord);
        }
        Ok(this)
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.region_uuid == [0; 16]
    }

    /// Checks whether a stream can be applied to this replica, a device of `replica_sectors` sectors.
    ///
    /// `overwrite`: a full stream may overwrite a copy of another origin.
    pub fn accept(
        &self,
        header: &StreamHeader,
        replica_sectors: u64,
        overwrite: bool,
    ) -> Result<(), StreamError> {
        let origin_sectors = header.origin_sectors;
        if replica_sectors < origin_sectors {
            return Err(StreamError::TooSmall { origin_sectors, replica_sectors });
        }
        let same_origin = self.region_uuid == header.region_uuid;
        if header.start != ResumePoint::START {
            // The base of a full stream is 0, and so is what a replica holds once that has begun.
            let same = same_origin
                && self.receiving == header.snapshot
                && self.origin_sectors == origin_sectors
                && self.total_blocks == header.total_blocks
                && self.snapshot == header.base
                && self.point == header.start;
            return if same { Ok(()) } else { Err(StreamError::ResumeMismatch) };
        }
        if header.is_full() {
            if !self.is_empty() && !same_origin && !overwrite {
                return Err(StreamError::WouldOverwrite);
            }
            return Ok(());
        }
        if self.is_empty() {
            return Err(StreamError::NoBase);
        }
        if !same_origin {
            return Err(StreamError::OtherOrigin);
        }
        if self.receiving != 0 && self.receiving != header.snapshot {
            return Err(StreamError::Receiving { snapshot: self.receiving });
        }
        if self.snapshot >= header.snapshot {
            return Err(StreamError::AlreadyThere { snapshot: header.snapshot });
        }
        if self.snapshot != header.base {
            let (base, replica) = (header.base, self.snapshot);
            return Err(StreamError::BaseMismatch { base, replica });
        }
        // One that has grown since is new there, and so in the delta; it does not shrink.
        if origin_sectors < self.origin_sectors {
            return Err(StreamError::SizeChanged);
        }
        Ok(())
    }

    /// The record to make durable before the first block of an accepted stream is written.
    pub fn begun(&self, header: &StreamHeader) -> Self {
        Self {
            region_uuid: header.region_uuid,
            origin_sectors: header.origin_sectors,
            snapshot: header.base,
            receiving: header.snapshot,
            point: header.start,
            total_blocks: header.total_blocks,
            ..*self
        }
    }

    /// The record to make durable after all blocks up to `point` are.
    pub fn advanced(&self, point: ResumePoint) -> Self {
        Self { point, ..*self }
    }

    /// The record to make durable after all blocks of the stream are.
    pub fn completed(&self, header: &StreamHeader) -> Self {
        Self {
            region_uuid: header.region_uuid,
            origin_sectors: header.origin_sectors,
            snapshot: header.snapshot,
            receiving: 0,
            point: ResumePoint::START,
            total_blocks: header.total_blocks,
            op_last: header.op_last,
            t0_realtime_ns: header.t0_realtime_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::header;
    use super::super::STREAM_FULL;
    use super::*;

    const POINT: ResumePoint = ResumePoint { sequence: 2, chain: 5, blocks: 3, next_block: 9 };

    fn holding(snapshot: u32) -> Replica {
        Replica::default().completed(&StreamHeader { snapshot, ..header() })
    }

    fn full() -> StreamHeader {
        StreamHeader { flags: STREAM_FULL, base: 0, ..header() }
    }

    #[test]
    fn round_trip_and_every_byte_counts() {
        let busy = holding(4).begun(&header()).advanced(POINT);
        for replica in [Replica::default(), holding(4), busy, Replica::default().begun(&full())] {
            let mut bytes = [0xaa; REPLICA_BYTES];
            replica.encode(&mut bytes);
            assert_eq!(Replica::decode(&bytes), Ok(replica));
            for at in 0..bytes.len() {
                bytes[at] ^= 0x01;
                assert!(Replica::decode(&bytes).is_err(), "byte {at}");
                bytes[at] ^= 0x01;
            }
        }
        for bad in [
            Replica { region_uuid: [0; 16], ..holding(4) },
            Replica { snapshot: 0, ..holding(4) },
            Replica { receiving: 4, ..holding(4) },
            Replica { point: POINT, ..holding(4) },
            Replica { point: ResumePoint { next_block: 2000, ..POINT }, ..busy },
        ] {
            let mut bytes = [0; REPLICA_BYTES];
            bad.encode(&mut bytes);
            assert_eq!(Replica::decode(&bytes), Err(StreamError::ReplicaRecord), "{bad:?}");
        }
    }

    #[test]
    fn base_is_checked() {
        let check = |replica: Replica, header: StreamHeader| replica.accept(&header, 8003, false);
        assert_eq!(check(holding(4), header()), Ok(()));
        assert_eq!(check(Replica::default(), header()), Err(StreamError::NoBase));
        let mismatch = StreamError::BaseMismatch { base: 4, replica: 3 };
        assert_eq!(check(holding(3), header()), Err(mismatch));
        let there = StreamError::AlreadyThere { snapshot: 5 };
        assert_eq!(check(holding(5), header()), Err(there));
        let other = Replica { region_uuid: [8; 16], ..holding(4) };
        assert_eq!(check(other, header()), Err(StreamError::OtherOrigin));
        let grown = Replica { origin_sectors: 8000, ..holding(4) };
        assert_eq!(check(grown, header()), Ok(()));
        let shrunk = Replica { origin_sectors: 8004, ..holding(4) };
        assert_eq!(check(shrunk, header()), Err(StreamError::SizeChanged));
        let small = holding(4).accept(&header(), 8002, true);
        assert!(matches!(small, Err(StreamError::TooSmall { .. })));
    }

    #[test]
    fn full_streams() {
        for replica in [Replica::default(), holding(4), holding(9)] {
            assert_eq!(replica.accept(&full(), 8003, false), Ok(()));
        }
        let other = Replica { region_uuid: [8; 16], ..holding(4) };
        assert_eq!(other.accept(&full(), 8003, false), Err(StreamError::WouldOverwrite));
        assert_eq!(other.accept(&full(), 8003, true), Ok(()));
    }

    #[test]
    fn interrupted_streams() {
        let busy = holding(4).begun(&header()).advanced(POINT);
        let check = |header: StreamHeader| busy.accept(&header, 8003, false);
        // Resumed where it stopped, or begun anew, or replaced by a full one.
        assert_eq!(check(StreamHeader { start: POINT, ..header() }), Ok(()));
        assert_eq!(check(header()), Ok(()));
        assert_eq!(check(full()), Ok(()));
        let elsewhere = ResumePoint { chain: 6, ..POINT };
        let resume_mismatch = Err(StreamError::ResumeMismatch);
        assert_eq!(check(StreamHeader { start: elsewhere, ..header() }), resume_mismatch);
        assert_eq!(check(StreamHeader { start: POINT, ..full() }), resume_mismatch);
        assert_eq!(
            check(StreamHeader { start: POINT, total_blocks: 11, ..header() }),
            resume_mismatch
        );
        let next = StreamHeader { snapshot: 6, ..header() };
        assert_eq!(check(next), Err(StreamError::Receiving { snapshot: 5 }));
        // A full stream that replaces a copy can be resumed too, and leaves no base behind if it is not.
        let replaced = holding(4).begun(&full()).advanced(POINT);
        assert_eq!(replaced.accept(&StreamHeader { start: POINT, ..full() }, 8003, false), Ok(()));
        let delta = replaced.accept(&header(), 8003, false);
        assert_eq!(delta, Err(StreamError::BaseMismatch { base: 4, replica: 0 }));
    }
}
