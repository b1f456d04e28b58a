// SPDX-License-Identifier: GPL-2.0-only

//! CRC32C (Castagnoli), the checksum of every format of presnap.
//!
//! Convention of zlib and iSCSI: the seed of a fresh checksum is 0 and the complements are inside, so
//! that `crc32c(crc32c(0, a), b) == crc32c(0, ab)`. It equals the kernel's `~crc32c(~seed, data)`.
//! Slicing by 8 (Kounavis and Berry, 2005); [`combine`] is polynomial arithmetic as in zlib.

use crate::geometry::BLOCK_BYTES;

/// The reversed Castagnoli polynomial.
const POLY: u32 = 0x82f6_3b78;
/// The polynomial 1 in reversed bit order: the highest bit is the coefficient of x^0.
const ONE: u32 = 1 << 31;

/// `TABLES[k][b]`: the checksum state after byte `b` and `k` zero bytes.
static TABLES: [[u32; 256]; 8] = tables();
/// x^(8 * 4096) modulo the polynomial: what appending a whole block multiplies a checksum with.
const BLOCK_FACTOR: u32 = factor(BLOCK_BYTES as u64);

// Evaluated at compile time, where an index out of range is a compile error.
const fn tables() -> [[u32; 256]; 8] {
    let mut t = [[0u32; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = times_x(crc);
            bit += 1;
        }
        t[0][byte] = crc;
        byte += 1;
    }
    let mut k = 1;
    while k < 8 {
        let mut byte = 0;
        while byte < 256 {
            let previous = t[k - 1][byte];
            t[k][byte] = (previous >> 8) ^ t[0][(previous & 0xff) as usize];
            byte += 1;
        }
        k += 1;
    }
    t
}

/// Multiplies a polynomial by x.
const fn times_x(p: u32) -> u32 {
    if p & 1 == 0 {
        p >> 1
    } else {
        (p >> 1) ^ POLY
    }
}

/// Multiplies two polynomials modulo the generator.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = ONE;
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
        }
        b = times_x(b);
        bit >>= 1;
    }
    product
}

/// x^(8 * bytes) modulo the generator.
const fn factor(mut bytes: u64) -> u32 {
    let mut power = ONE >> 8;
    let mut result = ONE;
    while bytes != 0 {
        if bytes & 1 != 0 {
            result = multiply(power, result);
        }
        power = multiply(power, power);
        bytes >>= 1;
    }
    result
}

#[inline]
fn at(table: &[u32; 256], byte: u64) -> u32 {
    // The index is below 256, so the fallback is dead code.
    table.get((byte & 0xff) as usize).copied().unwrap_or(0)
}

/// Returns the CRC32C of `data`, continued from `seed` (0 to begin).
pub fn crc32c(seed: u32, data: &[u8]) -> u32 {
    let [t0, t1, t2, t3, t4, t5, t6, t7] = &TABLES;
    let mut crc = !seed;
    let mut words = data.chunks_exact(8);
    for word in &mut words {
        let Some(word) = word.first_chunk::<8>() else { continue };
        let x = u64::from_le_bytes(*word) ^ u64::from(crc);
        crc = at(t7, x)
            ^ at(t6, x >> 8)
            ^ at(t5, x >> 16)
            ^ at(t4, x >> 24)
            ^ at(t3, x >> 32)
            ^ at(t2, x >> 40)
            ^ at(t1, x >> 48)
            ^ at(t0, x >> 56);
    }
    for &byte in words.remainder() {
        crc = (crc >> 8) ^ at(t0, u64::from(crc) ^ u64::from(byte));
    }
    !crc
}

/// Returns the CRC32C of two byte strings laid end to end, from the checksum of each and the length in
/// bytes of the second.
pub fn combine(a: u32, b: u32, len_b: u64) -> u32 {
    let f = if len_b == u64::from(BLOCK_BYTES) { BLOCK_FACTOR } else { factor(len_b) };
    multiply(f, a) ^ b
}

/// Returns the CRC32C of `data` as if the four bytes at `hole`, where its own checksum is kept, were zero.
pub fn with_hole(data: &[u8], hole: usize) -> u32 {
    let (head, rest) = data.split_at_checked(hole).unwrap_or((data, &[]));
    let tail = rest.get(4..).unwrap_or(&[]);
    crc32c(crc32c(crc32c(0, head), &[0; 4]), tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        // RFC 3720, B.4, and the check value of the CRC catalogue.
        let ascending: Vec<u8> = (0..32).collect();
        for (data, crc) in [
            (&b""[..], 0),
            (&b"123456789"[..], 0xe306_9283),
            (&[0u8; 32][..], 0x8a91_36aa),
            (&[0xffu8; 32][..], 0x62a8_ab43),
            (&ascending[..], 0x46dd_794e),
        ] {
            assert_eq!(crc32c(0, data), crc);
        }
    }

    #[test]
    fn combine_equals_concatenation() {
        let data: Vec<u8> =
            (0..9000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for cut in [0, 1, 7, 8, 9, 511, 4096, 4904, 8999, 9000] {
            let (a, b) = data.split_at(cut);
            let both = crc32c(0, &data);
            assert_eq!(crc32c(crc32c(0, a), b), both);
            assert_eq!(combine(crc32c(0, a), crc32c(0, b), b.len() as u64), both);
        }
    }

    #[test]
    fn hole_reads_as_zero() {
        let mut data = [7u8; 100];
        data[12..16].fill(0);
        let plain = crc32c(0, &data);
        data[12..16].fill(9);
        assert_eq!(with_hole(&data, 12), plain);
    }
}
