// SPDX-License-Identifier: GPL-2.0-only

//! The device under torture: direct, direct+FUA and buffered ways into it. Regular files work too.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{bail, Context, Result};
pub(crate) use presnap_blockio::Buffer;
use presnap_blockio::Mode;

use crate::sector::{inspect, Seen, SECTOR};

/// Bytes of one request at most.
pub(crate) const MAX_IO: usize = 1 << 20;

/// Sectors of a direct write that the kernel hands to the device as one request: far below what a bio holds, and what
/// device-mapper would split. Disks below may well split it.
pub(crate) const WHOLE_SECTORS: u64 = 128;

/// How a write travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// `O_DIRECT`.
    Direct,
    /// `O_DIRECT|O_DSYNC`: the kernel sends it with FUA.
    Fua,
    /// Through the page cache.
    Buffered,
}

/// The opened device.
pub(crate) struct Device {
    direct: File,
    fua: File,
    buffered: File,
    /// Not a file.
    pub(crate) is_block_device: bool,
    /// Size in sectors (at most 2^32 - 1).
    pub(crate) sectors: u64,
    /// Sectors of a logical block: the alignment of all requests.
    pub(crate) unit: u64,
}

impl Device {
    /// Opens `path` for itself: refused when it is mounted or in use.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let mode = Mode { write: true, direct: true, exclusive: true, dsync: false };
        let direct = presnap_blockio::open(path, mode)
            .with_context(|| format!("--device {shown}: cannot open for writing"))?;
        let others = Mode { exclusive: false, ..mode };
        let fua = presnap_blockio::open(path, Mode { dsync: true, ..others })?;
        let buffered = presnap_blockio::open(path, Mode { direct: false, ..others })?;
        let bytes = presnap_blockio::size(&direct).with_context(|| format!("--device {shown}"))?;
        let is_block_device = presnap_blockio::is_block_device(&direct)?;
        let unit = if is_block_device {
            presnap_blockio::logical_block_bytes(&direct)? / SECTOR as u64
        } else {
            // Files on most file systems take 512-byte direct I/O only on 512-byte disks: probe.
            let mut b = Buffer::new(SECTOR);
            if direct.read_at(b.slice(SECTOR), 0).is_ok() {
                1
            } else {
                8
            }
        };
        let sectors = bytes / SECTOR as u64 / 8 * 8;
        if sectors < 4096 {
            bail!("--device {shown}: {sectors} sectors are too few, 2 MiB at least");
        }
        if sectors > 1 << 23 {
            bail!("--device {shown}: larger than 4 GiB; the history would not fit memory");
        }
        Ok(Self { direct, fua, buffered, is_block_device, sectors, unit: unit.max(1) })
    }

    fn file(&self, way: Way) -> &File {
        match way {
            Way::Direct => &self.direct,
            Way::Fua => &self.fua,
            Way::Buffered => &self.buffered,
        }
    }

    /// Writes `data` at `sector`.
    pub(crate) fn write(&self, way: Way, sector: u64, data: &[u8]) -> io::Result<()> {
        self.file(way).write_all_at(data, sector * SECTOR as u64)
    }

    /// Reads into `out` from `sector`.
    pub(crate) fn read(&self, way: Way, sector: u64, out: &mut [u8]) -> io::Result<()> {
        self.file(way).read_exact_at(out, sector * SECTOR as u64)
    }

    /// Makes everything written durable (a FLUSH for the device).
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.buffered.sync_data()
    }

    /// Discards a range.
    pub(crate) fn discard(&self, sector: u64, sectors: u64) -> io::Result<()> {
        presnap_blockio::discard(&self.direct, sector * SECTOR as u64, sectors * SECTOR as u64)
    }

    /// Zeroes a range by the device's own command.
    pub(crate) fn zero(&self, sector: u64, sectors: u64) -> io::Result<()> {
        presnap_blockio::zero(&self.direct, sector * SECTOR as u64, sectors * SECTOR as u64)
    }
}

/// Reads a whole image and says what each of its sectors holds.
pub(crate) fn read_image(path: &Path, sectors: u64, run: u64) -> Result<Vec<Seen>> {
    let shown = path.display();
    let mode = Mode { direct: true, ..Mode::default() };
    let file = presnap_blockio::open(path, mode).with_context(|| format!("image {shown}"))?;
    let mut seen = Vec::with_capacity(sectors as usize);
    let mut buffer = Buffer::new(MAX_IO);
    let mut at = 0u64;
    while at < sectors {
        let n = (sectors - at).min((MAX_IO / SECTOR) as u64);
        let out = buffer.slice(n as usize * SECTOR);
        match file.read_exact_at(out, at * SECTOR as u64) {
            Ok(()) => {
                for (i, s) in out.chunks_exact(SECTOR).enumerate() {
                    seen.push(inspect(s, at + i as u64, run));
                }
            }
            Err(e) => {
                eprintln!("image {shown}: sectors {at}+{n}: {e}");
                let from = seen.len();
                seen.resize(from + n as usize, Seen::Zero);
                crate::check::unreadable(&mut seen[from..]);
            }
        }
        at += n;
    }
    Ok(seen)
}
