// SPDX-License-Identifier: GPL-2.0-only

//! Device-mapper without `dmsetup`, for programs that make devices by the thousand: its ioctls, as
//! `include/uapi/linux/dm-ioctl.h` has them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

const DEV_CREATE: u8 = 3;
const DEV_REMOVE: u8 = 4;
const DEV_SUSPEND: u8 = 6;
const TABLE_LOAD: u8 = 9;
const TABLE_STATUS: u8 = 12;
const TARGET_MSG: u8 = 14;

const FLAG_READONLY: u32 = 1 << 0;
const FLAG_DATA_OUT: u32 = 1 << 16;

/// Bytes of `struct dm_ioctl`, and of all that is handed over.
const HEADER: usize = 312;
const SIZE: usize = 16384;
/// Bytes of `struct dm_target_spec`.
const SPEC: usize = 40;

/// Offsets in `struct dm_ioctl`.
const DATA_SIZE: usize = 12;
const DATA_START: usize = 16;
const TARGET_COUNT: usize = 20;
const FLAGS: usize = 28;
const DEV: usize = 40;
const NAME: usize = 48;

/// The control node.
pub struct Control {
    file: File,
}

/// What goes to the kernel and comes back.
struct Call {
    bytes: Vec<u8>,
}

impl Call {
    fn new(name: &str, flags: u32) -> io::Result<Self> {
        if name.len() > 127 || name.contains('\0') {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut call = Self { bytes: vec![0; SIZE] };
        call.put(0, &4u32.to_le_bytes()); // version 4.0.0
        call.put(DATA_SIZE, &(SIZE as u32).to_le_bytes());
        call.put(DATA_START, &(HEADER as u32).to_le_bytes());
        call.put(FLAGS, &flags.to_le_bytes());
        call.put(NAME, name.as_bytes());
        Ok(call)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Puts a text with the zero that ends it.
    fn text(&mut self, at: usize, text: &str) -> io::Result<()> {
        if text.contains('\0') || at + text.len() >= SIZE {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.put(at, text.as_bytes());
        Ok(())
    }

    fn u32(&self, at: usize) -> u32 {
        self.bytes[at..].first_chunk().map_or(0, |b| u32::from_le_bytes(*b))
    }

    fn text_at(&self, at: usize) -> String {
        let rest = self.bytes.get(at..).unwrap_or_default();
        let text = rest.split(|&b| b == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).trim().into()
    }
}

impl Control {
    /// Opens it.
    pub fn open() -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/mapper/control")?;
        Ok(Self { file })
    }

    fn call(&self, command: u8, call: &mut Call) -> io::Result<()> {
        // _IOWR(0xfd, command, struct dm_ioctl)
        let request = 3u64 << 30 | (HEADER as u64) << 16 | 0xfd << 8 | u64::from(command);
        // SAFETY: the kernel reads and writes at most the `data_size` bytes that the header says, which are all of the
        // vector and live over the call.
        let r =
            unsafe { libc::ioctl(self.file.as_raw_fd(), request as _, call.bytes.as_mut_ptr()) };
        if r < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Makes a device of one target that begins at sector 0; returns its node. On failure nothing is left.
    pub fn create(
        &self,
        name: &str,
        sectors: u64,
        target: &str,
        params: &str,
        readonly: bool,
    ) -> io::Result<PathBuf> {
        self.call(DEV_CREATE, &mut Call::new(name, 0)?)?;
        self.load_and_resume(name, sectors, target, params, readonly).inspect_err(|_| {
            let _ = self.remove(name);
        })
    }

    fn load_and_resume(
        &self,
        name: &str,
        sectors: u64,
        target: &str,
        params: &str,
        readonly: bool,
    ) -> io::Result<PathBuf> {
        let flags = if readonly { FLAG_READONLY } else { 0 };
        let mut load = Call::new(name, flags)?;
        load.put(TARGET_COUNT, &1u32.to_le_bytes());
        load.put(HEADER + 8, &sectors.to_le_bytes());
        load.text(HEADER + 24, target)?;
        load.text(HEADER + SPEC, params)?;
        let next = (SPEC + params.len() + 1).next_multiple_of(8) as u32;
        load.put(HEADER + 20, &next.to_le_bytes());
        self.call(TABLE_LOAD, &mut load)?;
        let mut resume = Call::new(name, flags)?;
        self.call(DEV_SUSPEND, &mut resume)?;
        let dev = resume.u32(DEV);
        let minor = dev & 0xff | dev >> 12 & 0xf_ff00;
        Ok(PathBuf::from(format!("/dev/dm-{minor}")))
    }

    /// Removes a device.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        self.call(DEV_REMOVE, &mut Call::new(name, 0)?)
    }

    /// The status line of its first target, without start, length and kind.
    pub fn status(&self, name: &str) -> io::Result<String> {
        let mut call = Call::new(name, 0)?;
        self.call(TABLE_STATUS, &mut call)?;
        Ok(call.text_at(call.u32(DATA_START) as usize + SPEC))
    }

    /// Sends a message to sector 0; returns the answer.
    pub fn message(&self, name: &str, message: &str) -> io::Result<String> {
        let mut call = Call::new(name, 0)?;
        call.text(HEADER + 8, message)?;
        self.call(TARGET_MSG, &mut call)?;
        let answered = call.u32(FLAGS) & FLAG_DATA_OUT != 0;
        Ok(if answered { call.text_at(call.u32(DATA_START) as usize) } else { String::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_have_the_kernels_layout() {
        let mut call = Call::new("p", FLAG_READONLY).unwrap();
        assert_eq!((call.u32(0), call.u32(DATA_SIZE), call.u32(FLAGS)), (4, SIZE as u32, 1));
        assert_eq!(call.text_at(NAME), "p");
        call.text(HEADER, "two words").unwrap();
        assert_eq!(call.text_at(call.u32(DATA_START) as usize), "two words");
        assert!(Call::new(&"x".repeat(128), 0).is_err());
        assert!(call.text(SIZE - 3, "abc").is_err() && call.text(HEADER, "a\0b").is_err());
    }
}
