// SPDX-License-Identifier: GPL-2.0-only

//! Direct I/O, and content that says where it belongs.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use presnap_blockio::{Buffer, Mode};

/// Bytes of a sector.
pub(crate) const SECTOR: usize = 512;
/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;

/// Opens a device for direct I/O; others may have it open, too.
pub(crate) fn open(path: &Path, write: bool, dsync: bool) -> Result<File> {
    let mode = Mode { write, direct: true, exclusive: false, dsync };
    presnap_blockio::open(path, mode).with_context(|| path.display().to_string())
}

/// Fills whole sectors with content of this version: each has its own, and it is never zero.
pub(crate) fn fill(bytes: &mut [u8], first_sector: u64, version: u64) {
    for (sector, bytes) in (first_sector..).zip(bytes.chunks_mut(SECTOR)) {
        let mut x = (sector << 24) ^ version.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bd1_e995;
        for word in bytes.chunks_mut(8) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            word.copy_from_slice(&(x | 1).to_le_bytes()[..word.len()]);
        }
    }
}

/// Reads `len` bytes from the start, a piece at a time.
pub(crate) fn read_all(file: &File, len: usize) -> Result<Vec<u8>> {
    const PIECE: usize = 1 << 20;
    let mut all = Vec::with_capacity(len);
    let mut buffer = Buffer::new(PIECE);
    while all.len() < len {
        let piece = buffer.slice(PIECE.min(len - all.len()));
        file.read_exact_at(piece, all.len() as u64).context("reading")?;
        all.extend_from_slice(piece);
    }
    Ok(all)
}

/// Writes all of `bytes` from the start, a piece at a time.
pub(crate) fn write_all(file: &File, bytes: &[u8]) -> Result<()> {
    const PIECE: usize = 1 << 20;
    let mut buffer = Buffer::new(PIECE);
    for (at, piece) in (0..).step_by(PIECE).zip(bytes.chunks(PIECE)) {
        let place = buffer.slice(piece.len());
        place.copy_from_slice(piece);
        file.write_all_at(place, at).context("writing")?;
    }
    Ok(())
}
