// SPDX-License-Identifier: GPL-2.0-only

//! The superblock: what the region is, written once by `format`, in two equal copies.

use super::bytes::{put_u32, Reader, Writer};
use super::{Copy2, Fault, FormatError, Layout, Part, Picked, MAX_ORIGIN_BLOCKS};
use crate::crc32c::with_hole;
use crate::geometry::{BLOCK_BYTES, BLOCK_SECTORS};

/// Bytes of the superblock: one block.
pub const SUPERBLOCK_BYTES: usize = BLOCK_BYTES as usize;
/// The first bytes of a region.
pub const SUPERBLOCK_MAGIC: [u8; 8] = *b"PRESNAPR";
/// Version of the whole region format.
pub const REGION_VERSION: u32 = 2;
/// Offset of the checksum.
const CRC_AT: usize = 12;

/// What a region is and which origin it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Identity of the region, new with each format.
    pub region_uuid: [u8; 16],
    /// Identity of the origin; all zero: any.
    pub origin_id: [u8; 16],
    /// Size of the origin.
    pub origin_sectors: u64,
    /// Size of the region.
    pub region_blocks: u64,
    /// Number of slots, as [`Layout::for_region`] has it.
    pub slots: u32,
    /// Time of the format, seconds since 1970.
    pub created_realtime_s: u64,
}

impl Superblock {
    /// Returns the number of blocks of the origin, the last one perhaps in part.
    pub const fn origin_blocks(&self) -> u64 {
        self.origin_sectors.div_ceil(BLOCK_SECTORS as u64)
    }

    /// Encodes it.
    pub fn encode(&self, out: &mut [u8; SUPERBLOCK_BYTES]) {
        let mut w = Writer::new(out);
        w.array(SUPERBLOCK_MAGIC);
        w.u32(REGION_VERSION);
        w.u32(0);
        w.array(self.region_uuid);
        w.array(self.origin_id);
        w.u64(self.origin_sectors);
        w.u64(self.region_blocks);
        w.u64(self.created_realtime_s);
        w.u32(self.slots);
        w.zero_rest();
        let crc = with_hole(out, CRC_AT);
        put_u32(out, CRC_AT, crc);
    }

    /// Decodes and checks it; what follows the first [`SUPERBLOCK_BYTES`] is ignored.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let fail = |fault| Err(FormatError::new(Part::Superblock, fault));
        let Some(block) = bytes.first_chunk::<SUPERBLOCK_BYTES>() else {
            return fail(Fault::Short);
        };
        let mut r = Reader::new(block);
        if r.array() != SUPERBLOCK_MAGIC {
            return fail(Fault::Magic);
        }
        let version = r.u32();
        if r.u32() != with_hole(block, CRC_AT) {
            return fail(Fault::Checksum);
        }
        if version != REGION_VERSION {
            return fail(Fault::Version);
        }
        let mut s = Self {
            region_uuid: r.array(),
            origin_id: r.array(),
            origin_sectors: r.u64(),
            region_blocks: r.u64(),
            slots: 0,
            created_realtime_s: r.u64(),
        };
        s.slots = r.u32();
        if !r.rest_is_zero() {
            return fail(Fault::Reserved);
        }
        match Layout::for_region(s.region_blocks) {
            Ok(layout) if layout.slots == s.slots => {}
            _ => return fail(Fault::Size),
        }
        if s.origin_sectors == 0 || s.origin_blocks() > MAX_ORIGIN_BLOCKS {
            return fail(Fault::Origin);
        }
        Ok(s)
    }

    /// Whether the bytes begin with the magic number of a region, valid or not.
    pub fn probe(bytes: &[u8]) -> bool {
        bytes.starts_with(&SUPERBLOCK_MAGIC)
    }

    /// Picks a valid copy, the first if both are.
    pub fn pick(a: &[u8], b: &[u8]) -> Result<Picked<Self>, FormatError> {
        match (Self::decode(a), Self::decode(b)) {
            (Ok(value), other) => {
                let other_fault = match other {
                    Ok(other) if other == value => None,
                    Ok(_) => Some(FormatError::new(Part::Superblock, Fault::Copies)),
                    Err(e) => Some(e),
                };
                Ok(Picked { copy: Copy2::A, value, other_fault })
            }
            (Err(e), Ok(value)) => Ok(Picked { copy: Copy2::B, value, other_fault: Some(e) }),
            // "Wrong magic" of a blank copy says less than what is wrong with the other.
            (Err(e), Err(other)) => Err(if e.fault == Fault::Magic { other } else { e }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Superblock {
        Superblock {
            region_uuid: *b"0123456789abcdef",
            origin_id: [3; 16],
            origin_sectors: 1 << 21,
            region_blocks: 4096,
            slots: Layout::for_region(4096).unwrap().slots,
            created_realtime_s: 1_700_000_000,
        }
    }

    fn encoded(s: &Superblock) -> [u8; SUPERBLOCK_BYTES] {
        let mut block = [0xaa; SUPERBLOCK_BYTES];
        s.encode(&mut block);
        block
    }

    #[test]
    fn round_trip_and_every_byte_counts() {
        let mut block = encoded(&sample());
        assert_eq!(Superblock::decode(&block), Ok(sample()));
        for i in 0..block.len() {
            for flip in [0x01, 0x80, 0xff] {
                block[i] ^= flip;
                assert!(Superblock::decode(&block).is_err(), "byte {i}");
                block[i] ^= flip;
            }
        }
        assert_eq!(Superblock::decode(&block[..4095]).unwrap_err().fault, Fault::Short);
    }

    #[test]
    fn fields_are_checked_behind_a_good_checksum() {
        let bad = |change: fn(&mut Superblock), fault| {
            let mut s = sample();
            change(&mut s);
            assert_eq!(Superblock::decode(&encoded(&s)).unwrap_err().fault, fault);
        };
        bad(|s| s.slots += 1, Fault::Size);
        bad(|s| s.region_blocks = 10, Fault::Size);
        bad(|s| s.region_blocks = u64::MAX, Fault::Size);
        bad(|s| s.origin_sectors = 0, Fault::Origin);
        bad(|s| s.origin_sectors = u64::MAX, Fault::Origin);
        for (at, fault) in [(8, Fault::Version), (80, Fault::Reserved), (4095, Fault::Reserved)] {
            let mut block = encoded(&sample());
            block[at] = 9;
            let crc = with_hole(&block, CRC_AT);
            put_u32(&mut block, CRC_AT, crc);
            assert_eq!(Superblock::decode(&block).unwrap_err().fault, fault);
        }
    }

    #[test]
    fn picks_the_valid_copy() {
        let good = encoded(&sample());
        let mut torn = good;
        torn[100] = 1;
        let picked = Superblock::pick(&good, &good).unwrap();
        assert_eq!((picked.copy, picked.other_fault), (Copy2::A, None));
        let picked = Superblock::pick(&torn, &good).unwrap();
        assert_eq!((picked.copy, picked.other_fault.unwrap().fault), (Copy2::B, Fault::Checksum));
        let mut other = sample();
        other.region_uuid = [9; 16];
        let picked = Superblock::pick(&good, &encoded(&other)).unwrap();
        assert_eq!((picked.copy, picked.other_fault.unwrap().fault), (Copy2::A, Fault::Copies));
        assert_eq!(Superblock::pick(&[0; 4096], &torn).unwrap_err().fault, Fault::Checksum);
        assert_eq!(Superblock::pick(&[0; 4096], &[0; 4096]).unwrap_err().fault, Fault::Magic);
        assert!(Superblock::probe(&torn) && !Superblock::probe(&[0; 4096]));
    }
}
