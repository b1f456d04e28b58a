// SPDX-License-Identifier: GPL-2.0-only

//! Taking an input apart, and putting checksums right.

use presnap_engine::crc32c::with_hole;

/// Reads an input from front to back; past its end it reads zeroes.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Begins with all of it.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Up to `n` bytes.
    pub fn take(&mut self, n: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(n.min(self.0.len()));
        self.0 = tail;
        head
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// An array.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let got = self.take(N);
        out[..got.len()].copy_from_slice(got);
        out
    }

    /// A byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// A number.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// A number.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// A number.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// Fills the front of `out` with up to `n` bytes of the input.
    pub fn fill(&mut self, out: &mut [u8], n: usize) {
        let got = self.take(n.min(out.len()));
        out[..got.len()].copy_from_slice(got);
    }

    /// Changes single bytes anywhere: a count (at most 7), then offset and value of each. For what is mostly zero,
    /// and too long to be spelled out.
    pub fn patch(&mut self, out: &mut [u8]) {
        for _ in 0..self.u8() & 7 {
            let (at, value) = (usize::from(self.u16()), self.u8());
            if let Some(place) = at.checked_rem(out.len()).and_then(|at| out.get_mut(at)) {
                *place = value;
            }
        }
    }

    /// Sets fields (offset, bytes) to numbers that mean something, or to their neighbours: a count (at most 3), then field,
    /// number and what is added. A fuzzer that changes bytes seldom makes two numbers equal.
    pub fn tie(&mut self, out: &mut [u8], fields: &[(usize, usize)], numbers: &[u64]) {
        for _ in 0..self.u8() & 3 {
            let [field, number, more] = self.array::<3>().map(usize::from);
            let (at, width) = fields[field % fields.len()];
            let value =
                numbers[number % numbers.len()].wrapping_add(more as u64 % 3).wrapping_sub(1);
            if let Some(place) = out.get_mut(at..at + width) {
                place.copy_from_slice(&value.to_le_bytes()[..width]);
            }
        }
    }
}

/// Writes a number, if there is room.
pub fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(place) = bytes.get_mut(at..at.saturating_add(4)) {
        place.copy_from_slice(&value.to_le_bytes());
    }
}

/// Reads a field of up to 8 bytes (offset, bytes).
pub fn get(bytes: &[u8], (at, width): (usize, usize)) -> u64 {
    let mut out = [0; 8];
    out[..width].copy_from_slice(&bytes[at..at + width]);
    u64::from_le_bytes(out)
}

/// Reads a number; 0 if it is not there.
pub fn get_u32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

/// Puts a structure's checksum of itself right.
pub fn mend(bytes: &mut [u8], crc_at: usize) {
    let crc = with_hole(bytes, crc_at);
    put_u32(bytes, crc_at, crc);
}

/// Words are words: something is said, on one line.
#[track_caller]
pub fn says(words: impl std::fmt::Display) {
    let words = words.to_string();
    assert!(words.len() > 5 && words.len() < 160, "no message: {words:?}");
    assert!(words.bytes().all(|b| (b' '..=b'~').contains(&b)), "no message: {words:?}");
}
