// SPDX-License-Identifier: GPL-2.0-only

//! Block devices, and files that stand for them: the few system calls that the tools share, and all of their `unsafe`.

pub mod dm;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

const BLKDISCARD: libc::c_ulong = 0x1277;
const BLKZEROOUT: libc::c_ulong = 0x127f;
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
const BLKSSZGET: libc::c_ulong = 0x1268;

/// Alignment of [`Buffer`], enough for direct I/O on every device.
pub const ALIGN: usize = 4096;

/// Memory aligned for direct I/O.
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// Zeroed memory of `len` bytes.
    pub fn new(len: usize) -> Self {
        let memory = vec![0u8; len + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN);
        Self { memory, start, len }
    }

    /// The first `len` bytes, or as many as there are.
    pub fn slice(&mut self, len: usize) -> &mut [u8] {
        let end = self.start + len.min(self.len);
        &mut self.memory[self.start..end]
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.slice(self.len)
    }
}

/// How to open a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mode {
    /// For writing, too.
    pub write: bool,
    /// Past the page cache, where the file system can.
    pub direct: bool,
    /// Refuse a block device that is mounted or otherwise in use.
    pub exclusive: bool,
    /// Each write is durable when it returns (FUA for direct I/O).
    pub dsync: bool,
}

/// Opens a device or file. Never creates one.
pub fn open(path: &Path, mode: Mode) -> io::Result<File> {
    let mut flags = 0;
    if mode.exclusive && std::fs::metadata(path)?.file_type().is_block_device() {
        flags |= libc::O_EXCL;
    }
    if mode.dsync {
        flags |= libc::O_DSYNC;
    }
    let mut o = OpenOptions::new();
    o.read(true).write(mode.write);
    if mode.direct {
        match o.custom_flags(flags | libc::O_DIRECT).open(path) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
            other => return other,
        }
    }
    o.custom_flags(flags).open(path)
}

/// Whether an open file is a block device.
pub fn is_block_device(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.file_type().is_block_device())
}

/// Major and minor number, if `path` is a block device.
pub fn device_number(path: &Path) -> io::Result<Option<(u32, u32)>> {
    let meta = std::fs::metadata(path)?;
    Ok(meta
        .file_type()
        .is_block_device()
        .then(|| (libc::major(meta.rdev()) as u32, libc::minor(meta.rdev()) as u32)))
}

fn ioctl_out<T: Default>(file: &File, request: libc::c_ulong) -> io::Result<T> {
    let mut out = T::default();
    // SAFETY: the two requests used write one value of type T (u64, c_int), which lives over the call.
    let r = unsafe { libc::ioctl(file.as_raw_fd(), request as _, &mut out as *mut T) };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(out)
}

/// Size in bytes of a block device or a regular file.
pub fn size(file: &File) -> io::Result<u64> {
    let meta = file.metadata()?;
    if meta.file_type().is_block_device() {
        ioctl_out(file, BLKGETSIZE64)
    } else if meta.is_file() {
        Ok(meta.len())
    } else {
        Err(io::Error::other("neither a block device nor a regular file"))
    }
}

/// Bytes of a logical block, the alignment of direct I/O; 512 for what is no block device.
pub fn logical_block_bytes(file: &File) -> io::Result<u64> {
    if is_block_device(file)? {
        let bytes: libc::c_int = ioctl_out(file, BLKSSZGET)?;
        Ok(u64::try_from(bytes).unwrap_or(512).max(512))
    } else {
        Ok(512)
    }
}

fn range_op(
    file: &File,
    request: libc::c_ulong,
    mode: i32,
    start: u64,
    len: u64,
) -> io::Result<()> {
    let fd = file.as_raw_fd();
    let r = if is_block_device(file)? {
        let range = [start, len];
        // SAFETY: both requests read an array of two u64, which lives over the call.
        unsafe { libc::ioctl(fd, request as _, range.as_ptr()) }
    } else {
        let (start, len) = match (i64::try_from(start), i64::try_from(len)) {
            (Ok(s), Ok(l)) => (s, l),
            _ => return Err(io::Error::from_raw_os_error(libc::EFBIG)),
        };
        // SAFETY: no memory is passed.
        unsafe { libc::fallocate(fd, mode | libc::FALLOC_FL_KEEP_SIZE, start, len) }
    };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Discards a range of bytes; a hole in a file.
pub fn discard(file: &File, start: u64, len: u64) -> io::Result<()> {
    range_op(file, BLKDISCARD, libc::FALLOC_FL_PUNCH_HOLE, start, len)
}

/// Zeroes a range of bytes by the device's own command.
pub fn zero(file: &File, start: u64, len: u64) -> io::Result<()> {
    range_op(file, BLKZEROOUT, libc::FALLOC_FL_ZERO_RANGE, start, len)
}

/// Locks a file against others who do the same, until it is closed; false if somebody has.
pub fn try_lock(file: &File) -> io::Result<bool> {
    // SAFETY: no memory is passed.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(true);
    }
    let e = io::Error::last_os_error();
    if e.kind() == io::ErrorKind::WouldBlock {
        Ok(false)
    } else {
        Err(e)
    }
}

/// The loop device that a file backs, if any.
pub fn loop_user(path: &Path) -> Option<String> {
    let path = std::fs::canonicalize(path).ok()?;
    std::fs::read_dir("/sys/block").ok()?.flatten().find_map(|entry| {
        let file = std::fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        (Path::new(file.trim_end()) == path)
            .then(|| format!("/dev/{}", entry.file_name().to_string_lossy()))
    })
}

/// CLOCK_MONOTONIC in nanoseconds.
pub fn monotonic_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec, which lives over the call; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn note_stop(_signal: libc::c_int) {
    STOP.store(true, Ordering::Relaxed);
}

/// From now on SIGINT and SIGTERM set the flag that is returned, instead of ending the process.
pub fn stop_on_signals() -> &'static AtomicBool {
    let handler = note_stop as extern "C" fn(libc::c_int);
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only stores to an atomic, which is allowed in a signal handler.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
    &STOP
}

/// Lets SIGPIPE end the process, which Rust's runtime otherwise ignores.
pub fn default_sigpipe() {
    // SAFETY: sets the default action, which needs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Undoes [`default_sigpipe`]: writing to a reader that has gone is an error, so that there is time to clean up.
pub fn ignore_sigpipe() {
    // SAFETY: ignoring needs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn buffers_are_aligned_and_files_stand_for_devices() {
        let mut b = Buffer::new(8192);
        assert_eq!(b.as_ptr() as usize % ALIGN, 0);
        assert_eq!((b.slice(100).len(), b.slice(1 << 20).len(), b.len()), (100, 8192, 8192));
        let path = std::env::temp_dir().join(format!("blockio-{}", std::process::id()));
        std::fs::write(&path, vec![7; 65536]).unwrap();
        let mode = Mode { write: true, direct: true, exclusive: true, ..Mode::default() };
        let f = open(&path, mode).unwrap();
        assert_eq!(size(&f).unwrap(), 65536);
        assert_eq!(logical_block_bytes(&f).unwrap(), 512);
        assert!(!is_block_device(&f).unwrap());
        assert_eq!(device_number(&path).unwrap(), None);
        if zero(&f, 4096, 4096).is_ok() {
            f.read_exact_at(b.slice(8192), 0).unwrap();
            assert!(b[..4096].iter().all(|&x| x == 7) && b[4096..].iter().all(|&x| x == 0));
        }
        assert!(discard(&f, u64::MAX, 1).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
