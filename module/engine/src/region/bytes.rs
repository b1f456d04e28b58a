// SPDX-License-Identifier: GPL-2.0-only

//! Little-endian reading and writing in order, without panics.
//!
//! The callers check lengths first. Past the end a [`Writer`] drops and a [`Reader`] reads zero.

/// Writes fields one after the other.
pub(crate) struct Writer<'a>(&'a mut [u8]);

impl<'a> Writer<'a> {
    pub(crate) fn new(buffer: &'a mut [u8]) -> Self {
        Self(buffer)
    }

    pub(crate) fn array<const N: usize>(&mut self, value: [u8; N]) {
        let rest = core::mem::take(&mut self.0);
        if let Some((head, tail)) = rest.split_first_chunk_mut::<N>() {
            *head = value;
            self.0 = tail;
        }
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.array([value]);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.array(value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.array(value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.array(value.to_le_bytes());
    }

    /// Zeroes what was not written.
    pub(crate) fn zero_rest(self) {
        self.0.fill(0);
    }
}

/// Reads fields one after the other.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((head, tail)) => {
                self.0 = tail;
                *head
            }
            None => {
                self.0 = &[];
                [0; N]
            }
        }
    }

    pub(crate) fn u8(&mut self) -> u8 {
        let [value] = self.array();
        value
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// Whether what was not read is zero.
    pub(crate) fn rest_is_zero(&self) -> bool {
        is_zero(self.0)
    }
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&b| b == 0)
}

/// Puts a word at an offset, nothing if it does not fit.
pub(crate) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(place) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<4>()) {
        *place = value.to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_order_and_never_past_the_end() {
        let mut buffer = [0xff; 16];
        let mut w = Writer::new(&mut buffer);
        w.u8(1);
        w.u16(2);
        w.u32(3);
        w.array(*b"ab");
        w.zero_rest();
        assert_eq!(buffer, [1, 2, 0, 3, 0, 0, 0, b'a', b'b', 0, 0, 0, 0, 0, 0, 0]);
        let mut r = Reader::new(&buffer);
        assert_eq!((r.u8(), r.u16(), r.u32(), r.array()), (1, 2, 3, *b"ab"));
        assert!(r.rest_is_zero());
        assert_eq!((r.u64(), r.u8()), (0, 0));
        let mut w = Writer::new(&mut buffer[..7]);
        w.u64(u64::MAX);
        w.u8(9);
        assert_eq!(buffer[0], 1);
        put_u32(&mut buffer, 13, 7);
        put_u32(&mut buffer, usize::MAX, 7);
        put_u32(&mut buffer, 12, 7);
        assert_eq!(buffer[12..], [7, 0, 0, 0]);
    }
}
