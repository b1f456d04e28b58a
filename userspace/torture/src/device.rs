// SPDX-License-Identifier: GPL-2.0-only

//! The device under torture: direct, direct+FUA and buffered ways into it. Regular files work too.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};

use crate::sector::{inspect, Seen, SECTOR};

const BLKDISCARD: libc::c_ulong = 0x1277;
const BLKZEROOUT: libc::c_ulong = 0x127f;
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
const BLKSSZGET: libc::c_ulong = 0x1268;

/// Bytes of one request at most.
pub(crate) const MAX_IO: usize = 1 << 20;

/// Memory for direct I/O, aligned to 4 KiB.
pub(crate) struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// Zeroed memory of `len` bytes.
    pub(crate) fn new(len: usize) -> Self {
        let memory = vec![0u8; len + 4096];
        let start = memory.as_ptr().align_offset(4096);
        Self { memory, start, len }
    }

    /// The first `len` bytes.
    pub(crate) fn slice(&mut self, len: usize) -> &mut [u8] {
        let end = self.start + len.min(self.len);
        &mut self.memory[self.start..end]
    }
}

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
    block_device: bool,
    /// Size in sectors (at most 2^32 - 1).
    pub(crate) sectors: u64,
    /// Sectors of a logical block: the alignment of all requests.
    pub(crate) unit: u64,
}

fn ioctl_out<T: Default>(fd: RawFd, request: libc::c_ulong) -> io::Result<T> {
    let mut out = T::default();
    // SAFETY: the two requests used write one value of type T (u64, c_int), which lives over the call.
    let r = unsafe { libc::ioctl(fd, request as _, &mut out as *mut T) };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(out)
}

/// Opens with `O_DIRECT`, or without where the file system knows no such thing.
fn open_direct(path: &Path, write: bool, flags: i32) -> io::Result<File> {
    let mut o = OpenOptions::new();
    o.read(true).write(write);
    match o.custom_flags(libc::O_DIRECT | flags).open(path) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => o.custom_flags(flags).open(path),
        other => other,
    }
}

impl Device {
    /// Opens `path` for itself: refused when it is mounted or in use.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let meta =
            std::fs::metadata(path).with_context(|| format!("--device {}", path.display()))?;
        let block_device = meta.file_type().is_block_device();
        let exclusive = if block_device { libc::O_EXCL } else { 0 };
        let direct = open_direct(path, true, exclusive)
            .with_context(|| format!("--device {}: cannot open for writing", path.display()))?;
        let fua = open_direct(path, true, libc::O_DSYNC)?;
        let buffered = OpenOptions::new().read(true).write(true).open(path)?;
        let (bytes, unit) = if block_device {
            let fd = direct.as_raw_fd();
            let bytes: u64 = ioctl_out(fd, BLKGETSIZE64).context("BLKGETSIZE64")?;
            let unit: libc::c_int = ioctl_out(fd, BLKSSZGET).context("BLKSSZGET")?;
            (bytes, unit as u64 / SECTOR as u64)
        } else {
            // Files on most file systems take 512-byte direct I/O only on 512-byte disks: probe.
            let mut b = Buffer::new(SECTOR);
            let unit = if direct.read_at(b.slice(SECTOR), 0).is_ok() { 1 } else { 8 };
            (meta.len(), unit)
        };
        let sectors = bytes / SECTOR as u64 / 8 * 8;
        if sectors < 16384 {
            bail!("--device {}: {sectors} sectors are too few, 8 MiB at least", path.display());
        }
        if sectors > 1 << 23 {
            bail!(
                "--device {}: larger than 4 GiB; the history would not fit memory",
                path.display()
            );
        }
        Ok(Self { direct, fua, buffered, block_device, sectors, unit: unit.max(1) })
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

    fn range_op(&self, block: libc::c_ulong, mode: i32, sector: u64, n: u64) -> io::Result<()> {
        let (start, len) = (sector * SECTOR as u64, n * SECTOR as u64);
        let fd = self.direct.as_raw_fd();
        let r = if self.block_device {
            let range = [start, len];
            // SAFETY: both requests read an array of two u64, which lives over the call.
            unsafe { libc::ioctl(fd, block as _, range.as_ptr()) }
        } else {
            let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
            // SAFETY: no memory is passed.
            unsafe { libc::fallocate(fd, mode, start as i64, len as i64) }
        };
        if r < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Discards a range.
    pub(crate) fn discard(&self, sector: u64, sectors: u64) -> io::Result<()> {
        self.range_op(BLKDISCARD, libc::FALLOC_FL_PUNCH_HOLE, sector, sectors)
    }

    /// Zeroes a range by the device's own command.
    pub(crate) fn zero(&self, sector: u64, sectors: u64) -> io::Result<()> {
        self.range_op(BLKZEROOUT, libc::FALLOC_FL_ZERO_RANGE, sector, sectors)
    }
}

/// Reads a whole image and says what each of its sectors holds.
pub(crate) fn read_image(path: &Path, sectors: u64, run: u64) -> Result<Vec<Seen>> {
    let shown = || PathBuf::from(path).display().to_string();
    let file = open_direct(path, false, 0).with_context(|| format!("image {}", shown()))?;
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
                eprintln!("image {}: sectors {at}+{n}: {e}", shown());
                let from = seen.len();
                seen.resize(from + n as usize, Seen::Zero);
                crate::check::unreadable(&mut seen[from..]);
            }
        }
        at += n;
    }
    Ok(seen)
}
