// SPDX-License-Identifier: GPL-2.0-only

//! The self-describing sector: 512 bytes that tell where they belong and which write made them.
//!
//! Layout, little-endian 64-bit words: magic, address (sectors), stamp of the write, run, writer | kind << 32,
//! then filler derived from address and stamp, and in the last word a checksum of all the others. A sector
//! that is neither one of these nor all zero was torn or damaged by somebody.

/// Bytes of a sector.
pub(crate) const SECTOR: usize = 512;
/// Words of a sector.
const WORDS: usize = SECTOR / 8;
/// "PRETORTU" as a little-endian word.
const MAGIC: u64 = u64::from_le_bytes(*b"PRETORTU");

/// What a sector was found to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// All zero: never written, zeroed or discarded.
    Zero,
    /// Content of the write with this stamp, undamaged and at its own address.
    Stamp(u64),
    /// Anything else; the reason says what.
    Bad(Bad),
}

/// Why a sector is no valid content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bad {
    /// The magic is missing: foreign or damaged.
    Magic,
    /// The checksum does not match: torn or damaged.
    Checksum,
    /// Valid content of another address (sectors).
    Address(u64),
    /// Valid content of another run of the tool.
    Run,
    /// Could not be read at all.
    Unreadable,
}

impl std::fmt::Display for Bad {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Magic => write!(f, "neither zero nor ours (no magic)"),
            Self::Checksum => write!(f, "a torn or damaged sector (checksum)"),
            Self::Address(a) => write!(f, "the content of sector {a}"),
            Self::Run => write!(f, "content of another run"),
            Self::Unreadable => write!(f, "an I/O error"),
        }
    }
}

fn mix(a: u64) -> u64 {
    let a = (a ^ (a >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (a ^ (a >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
}

/// Order-dependent sum over the words; one multiplication a word, as this runs for each sector written and read.
fn sum(words: impl Iterator<Item = u64>) -> u64 {
    words.fold(0x9e37_79b9_7f4a_7c15, |h, w| {
        (h.rotate_left(23) ^ w).wrapping_mul(0xff51_afd7_ed55_8ccd)
    })
}

/// Fills `out` (a whole number of sectors) with the content of the write `stamp` at sector `address`.
pub(crate) fn fill(out: &mut [u8], address: u64, stamp: u64, run: u64, writer: u32, kind: u32) {
    for (i, sector) in out.chunks_exact_mut(SECTOR).enumerate() {
        let address = address + i as u64;
        let mut words = [0u64; WORDS];
        words[0] = MAGIC;
        words[1] = address;
        words[2] = stamp;
        words[3] = run;
        words[4] = u64::from(writer) | u64::from(kind) << 32;
        let base = mix(address ^ stamp.rotate_left(32));
        for (n, word) in words[5..WORDS - 1].iter_mut().enumerate() {
            *word = base.wrapping_add((n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        }
        words[WORDS - 1] = sum(words[..WORDS - 1].iter().copied());
        for (bytes, word) in sector.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }
}

/// Whether `a` and `b` are content of one sector of one run, and `a` was written later.
pub(crate) fn is_newer(a: &[u8], b: &[u8]) -> bool {
    // Mostly the first words tell; the checksums cost more.
    let same = word(a, 0) == MAGIC && (0..4).all(|i| i == 2 || word(a, i) == word(b, i));
    same && word(a, 2) > word(b, 2) && is_whole(a) && is_whole(b)
}

fn word(sector: &[u8], i: usize) -> u64 {
    let mut b = [0u8; 8];
    b.copy_from_slice(&sector[i * 8..i * 8 + 8]);
    u64::from_le_bytes(b)
}

/// Whether the checksum is right.
fn is_whole(sector: &[u8]) -> bool {
    sum((0..WORDS - 1).map(|i| word(sector, i))) == word(sector, WORDS - 1)
}

/// Reads back what one sector at `address` holds.
pub(crate) fn inspect(sector: &[u8], address: u64, run: u64) -> Seen {
    let word = |i: usize| word(sector, i);
    if word(0) != MAGIC {
        return if sector.iter().all(|&b| b == 0) { Seen::Zero } else { Seen::Bad(Bad::Magic) };
    }
    if !is_whole(sector) {
        return Seen::Bad(Bad::Checksum);
    }
    if word(3) != run {
        return Seen::Bad(Bad::Run);
    }
    if word(1) != address {
        return Seen::Bad(Bad::Address(word(1)));
    }
    Seen::Stamp(word(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_every_kind_of_damage() {
        let mut a = vec![0u8; 2 * SECTOR];
        let mut b = vec![0u8; 2 * SECTOR];
        fill(&mut a, 10, 7, 1, 3, 0);
        fill(&mut b, 10, 8, 1, 3, 0);
        assert_eq!(inspect(&a[..SECTOR], 10, 1), Seen::Stamp(7));
        assert_eq!(inspect(&a[SECTOR..], 11, 1), Seen::Stamp(7));
        assert_eq!(inspect(&a[SECTOR..], 10, 1), Seen::Bad(Bad::Address(11)));
        assert_eq!(inspect(&a[..SECTOR], 10, 2), Seen::Bad(Bad::Run));
        assert_eq!(inspect(&[0; SECTOR], 10, 1), Seen::Zero);
        let mut torn = a[..SECTOR].to_vec();
        torn[256..].copy_from_slice(&b[256..SECTOR]);
        assert_eq!(inspect(&torn, 10, 1), Seen::Bad(Bad::Checksum));
        torn[0] ^= 1;
        assert_eq!(inspect(&torn, 10, 1), Seen::Bad(Bad::Magic));
        for bit in 64..SECTOR * 8 {
            let mut flipped = a[..SECTOR].to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(inspect(&flipped, 10, 1), Seen::Bad(Bad::Checksum), "bit {bit}");
        }
    }
}
