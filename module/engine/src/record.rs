// SPDX-License-Identifier: GPL-2.0-only

//! The I/O record: what presnap remembers of a bio, and what userspace reads from the character device.

/// Size of an encoded record in bytes.
pub const RECORD_BYTES: usize = 32;

/// What a bio did. The numbers are the wire format of the record stream and of trace files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum IoKind {
    /// A read.
    Read = 0,
    /// A write with data.
    Write = 1,
    /// A discard.
    Discard = 2,
    /// A write-zeroes.
    WriteZeroes = 3,
    /// A flush without data.
    Flush = 4,
}

impl IoKind {
    /// Returns the kind of a wire number, `None` if there is no such kind.
    pub const fn from_wire(n: u8) -> Option<Self> {
        match n {
            0 => Some(Self::Read),
            1 => Some(Self::Write),
            2 => Some(Self::Discard),
            3 => Some(Self::WriteZeroes),
            4 => Some(Self::Flush),
            _ => None,
        }
    }

    /// Whether the kind changes content, and so takes an operation number.
    pub const fn modifies(self) -> bool {
        matches!(self, Self::Write | Self::Discard | Self::WriteZeroes)
    }
}

/// One observed bio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoRecord {
    /// Monotonic time of arrival in nanoseconds.
    pub time_ns: u64,
    /// Operation number; for reads and flushes, the number of the last write before it.
    pub op: u64,
    /// First sector, relative to the start of the target.
    pub sector: u64,
    /// Length in sectors.
    pub sectors: u32,
    /// What it did.
    pub kind: IoKind,
}

impl IoRecord {
    /// Encodes as four little-endian words: time, op, sector, sectors | kind << 32.
    pub const fn to_words(self) -> [u64; 4] {
        [self.time_ns, self.op, self.sector, self.sectors as u64 | (self.kind as u64) << 32]
    }

    /// Decodes [`IoRecord::to_words`]; `None` if the kind is unknown or reserved bits are set.
    pub const fn from_words(w: [u64; 4]) -> Option<Self> {
        if w[3] >> 40 != 0 {
            return None;
        }
        match IoKind::from_wire((w[3] >> 32) as u8) {
            Some(kind) => {
                Some(Self { time_ns: w[0], op: w[1], sector: w[2], sectors: w[3] as u32, kind })
            }
            None => None,
        }
    }

    /// Encodes as [`RECORD_BYTES`] bytes, the words of [`IoRecord::to_words`] in little-endian.
    pub fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let mut out = [0; RECORD_BYTES];
        for (chunk, word) in out.chunks_exact_mut(8).zip(self.to_words()) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// Decodes [`IoRecord::to_bytes`].
    pub fn from_bytes(bytes: &[u8; RECORD_BYTES]) -> Option<Self> {
        let mut words = [0u64; 4];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(chunk.try_into().ok()?);
        }
        Self::from_words(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip() {
        let r = IoRecord { time_ns: 1, op: 2, sector: 3, sectors: 4, kind: IoKind::Discard };
        assert_eq!(IoRecord::from_bytes(&r.to_bytes()), Some(r));
        let mut bad = r.to_bytes();
        bad[28] = 5;
        assert_eq!(IoRecord::from_bytes(&bad), None);
        bad[28] = 1;
        bad[31] = 1;
        assert_eq!(IoRecord::from_bytes(&bad), None);
    }
}
