// SPDX-License-Identifier: GPL-2.0-only

//! Where a region lies: a device or file, or something that stands for one.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use presnap_blockio::Buffer;
use presnap_engine::geometry::BLOCK_BYTES;

/// Bytes of a block.
pub const BLOCK: usize = BLOCK_BYTES as usize;

/// Blocks that can be read and written.
pub trait Medium {
    /// How many there are.
    fn blocks(&self) -> u64;
    /// Reads whole blocks.
    ///
    /// # Errors
    ///
    /// Those of the device.
    fn read(&self, block: u64, out: &mut [u8]) -> io::Result<()>;
    /// Writes whole blocks.
    ///
    /// # Errors
    ///
    /// Those of the device.
    fn write(&self, block: u64, data: &[u8]) -> io::Result<()>;
    /// Makes all that was written durable.
    ///
    /// # Errors
    ///
    /// Those of the device.
    fn flush(&self) -> io::Result<()>;
}

/// Reads blocks; nothing of what cannot be read, which then counts as damaged.
pub(crate) fn read(medium: &dyn Medium, block: u64, count: u64) -> Vec<u8> {
    let mut out = vec![0; count as usize * BLOCK];
    match medium.read(block, &mut out) {
        Ok(()) => out,
        Err(_) => Vec::new(),
    }
}

/// The most that is read or written at once.
const STEP: usize = 256 * BLOCK;

/// A device or file.
pub struct Device {
    file: File,
    blocks: u64,
    buffer: RefCell<Buffer>,
}

impl Device {
    /// Of an open file, perhaps for direct I/O.
    ///
    /// # Errors
    ///
    /// If its size cannot be found out.
    pub fn new(file: File) -> io::Result<Self> {
        let blocks = presnap_blockio::size(&file)? / BLOCK as u64;
        Ok(Self { file, blocks, buffer: RefCell::new(Buffer::new(STEP)) })
    }
}

impl Medium for Device {
    fn blocks(&self) -> u64 {
        self.blocks
    }

    fn read(&self, block: u64, out: &mut [u8]) -> io::Result<()> {
        let mut buffer = self.buffer.borrow_mut();
        for (at, part) in (block * BLOCK as u64..).step_by(STEP).zip(out.chunks_mut(STEP)) {
            let aligned = buffer.slice(part.len());
            self.file.read_exact_at(aligned, at)?;
            part.copy_from_slice(aligned);
        }
        Ok(())
    }

    fn write(&self, block: u64, data: &[u8]) -> io::Result<()> {
        let mut buffer = self.buffer.borrow_mut();
        for (at, part) in (block * BLOCK as u64..).step_by(STEP).zip(data.chunks(STEP)) {
            let aligned = buffer.slice(part.len());
            aligned.copy_from_slice(part);
            self.file.write_all_at(aligned, at)?;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}
