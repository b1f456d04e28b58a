// SPDX-License-Identifier: GPL-2.0-only

//! The kernel's log from some moment on.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};

/// Where `O_NONBLOCK` is not to be had from the standard library.
const O_NONBLOCK: i32 = 0o4000;

/// See the module.
pub(crate) struct KernelLog {
    file: File,
}

impl KernelLog {
    pub(crate) fn open() -> Result<Self> {
        let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open("/dev/kmsg");
        Ok(Self { file: file.context("/dev/kmsg")? })
    }

    /// Forgets what was said so far.
    pub(crate) fn mark(&mut self) -> Result<()> {
        self.file.seek(SeekFrom::End(0)).context("/dev/kmsg")?;
        Ok(())
    }

    /// What presnap, or device-mapper of presnap, has said since.
    pub(crate) fn words(&mut self) -> Result<Vec<String>> {
        let mut out = Vec::new();
        let mut line = [0; 8192];
        loop {
            match self.file.read(&mut line) {
                Ok(0) => return Ok(out),
                Ok(n) => {
                    let text = String::from_utf8_lossy(&line[..n]);
                    let text = text.lines().next().unwrap_or_default();
                    let text = text.split_once(';').map_or(text, |(_, words)| words);
                    if text.contains("presnap") {
                        out.push(text.to_string());
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(out),
                // Lines were overwritten before they were read.
                Err(e) if e.kind() == ErrorKind::BrokenPipe => {}
                Err(e) => return Err(e).context("/dev/kmsg"),
            }
        }
    }
}
