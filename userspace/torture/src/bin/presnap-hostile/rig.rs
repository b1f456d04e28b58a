// SPDX-License-Identifier: GPL-2.0-only

//! The two devices, the mapped one over them, and what the origin must hold.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use presnap_blockio::dm::Control;
use presnap_blockio::{open, Buffer, Mode};
use presnap_fuzz::recover::BLOCK;

use crate::kernel_log::KernelLog;
use crate::Common;

/// The mapped device, and a view.
const NAME: &str = "hostile";
const VIEW: &str = "hostile-view";
/// Longest time that anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// See the module.
pub(crate) struct Rig {
    dm: Control,
    pub(crate) log: KernelLog,
    origin: (PathBuf, File),
    pub(crate) region: PathBuf,
    region_file: File,
    /// Size of the origin.
    pub(crate) sectors: u64,
    /// What the origin must hold.
    pub(crate) model: Vec<u8>,
    pub(crate) rng: fastrand::Rng,
}

/// The mapped device while it is there.
pub(crate) struct Mapped {
    node: PathBuf,
    file: File,
}

impl Rig {
    pub(crate) fn new(args: &Common) -> Result<Self> {
        let mode = Mode { write: true, direct: true, exclusive: false, dsync: false };
        let device = |path: &Path| open(path, mode).with_context(|| path.display().to_string());
        let (origin, region_file) = (device(&args.origin)?, device(&args.region)?);
        let bytes = presnap_blockio::size(&origin)? / BLOCK as u64 * BLOCK as u64;
        ensure!(bytes <= 64 << 20, "an origin of more than 64 MiB would take too long");
        let mut rig = Self {
            dm: Control::open().context("/dev/mapper/control")?,
            log: KernelLog::open()?,
            origin: (args.origin.clone(), origin),
            region: args.region.clone(),
            region_file,
            sectors: bytes / 512,
            model: vec![0; bytes as usize],
            rng: fastrand::Rng::with_seed(args.seed),
        };
        rig.rng.fill(&mut rig.model);
        let all = rig.model.clone();
        rig.write_origin(0, &all)?;
        Ok(rig)
    }

    fn write_origin(&self, at: usize, bytes: &[u8]) -> Result<()> {
        let mut buffer = Buffer::new(bytes.len());
        buffer.copy_from_slice(bytes);
        self.origin.1.write_all_at(&buffer, at as u64).context("writing the origin")
    }

    /// Blocks of the origin.
    pub(crate) fn blocks(&self) -> usize {
        self.model.len() / BLOCK
    }

    /// Makes the origin what it was once, past every mapping.
    pub(crate) fn restore(&mut self, content: &[u8]) -> Result<()> {
        for at in (0..content.len()).step_by(BLOCK) {
            let block = &content[at..at + BLOCK];
            if self.model[at..at + BLOCK] != *block {
                self.write_origin(at, block)?;
                self.model[at..at + BLOCK].copy_from_slice(block);
            }
        }
        Ok(())
    }

    /// Compares the origin with what it must hold.
    pub(crate) fn origin_is_right(&self) -> Result<()> {
        let mut buffer = Buffer::new(self.model.len());
        self.origin.1.read_exact_at(&mut buffer, 0).context("reading the origin")?;
        self.same("the origin", &buffer, &self.model)
    }

    /// Names the first block that differs.
    pub(crate) fn same(&self, what: &str, got: &[u8], want: &[u8]) -> Result<()> {
        match got.chunks(BLOCK).zip(want.chunks(BLOCK)).position(|(a, b)| a != b) {
            Some(block) => bail!("{what}: block {block} is not what it must be"),
            None => Ok(()),
        }
    }

    /// The region, past every mapping.
    pub(crate) fn read_region(&self) -> Result<Vec<u8>> {
        let bytes = presnap_blockio::size(&self.region_file)? as usize / BLOCK * BLOCK;
        let mut buffer = Buffer::new(bytes);
        self.region_file.read_exact_at(&mut buffer, 0).context("reading the region")?;
        Ok(buffer.to_vec())
    }

    pub(crate) fn write_region(&self, content: &[u8]) -> Result<()> {
        let mut buffer = Buffer::new(content.len());
        buffer.copy_from_slice(content);
        self.region_file.write_all_at(&buffer, 0).context("writing the region")
    }

    /// Runs `presnap`. Whatever it says of what it was given, it ends in order.
    pub(crate) fn presnap(&self, args: &[&str]) -> Result<Output> {
        let out = Command::new("presnap").args(args).output().context("presnap does not run")?;
        let (code, words) = (out.status.code(), String::from_utf8_lossy(&out.stderr));
        ensure!(matches!(code, Some(0 | 1)), "presnap {}: {}: {words}", args.join(" "), out.status);
        let said = code == Some(0) || words.starts_with("presnap: ");
        ensure!(said, "presnap {} fails and does not say why: {words}", args.join(" "));
        Ok(out)
    }

    /// Formats the region.
    pub(crate) fn format(&self) -> Result<()> {
        let (origin, region) = (path(&self.origin.0)?, path(&self.region)?);
        let out = self.presnap(&["format", "--origin", origin, region, "--force"])?;
        ensure!(out.status.success(), "format: {}", String::from_utf8_lossy(&out.stderr));
        Ok(())
    }

    /// Maps the device; `None` if the kernel refuses.
    pub(crate) fn map(&self) -> Result<Option<Mapped>> {
        let params = format!("{} {}", path(&self.origin.0)?, path(&self.region)?);
        let Ok(node) = self.dm.create(NAME, self.sectors, "presnap", &params, false) else {
            return Ok(None);
        };
        let mode = Mode { write: true, direct: true, ..Mode::default() };
        let file = open(&node, mode).with_context(|| node.display().to_string())?;
        Ok(Some(Mapped { node, file }))
    }

    pub(crate) fn unmap(&self, mapped: Mapped) -> Result<()> {
        drop(mapped.file);
        // Whoever looks at new devices may have it open for a moment.
        let begin = Instant::now();
        while let Err(e) = self.dm.remove(NAME) {
            ensure!(begin.elapsed() < PATIENCE, "removing the device: {e}");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Removes what a failed test has left.
    pub(crate) fn clean(&self) -> Result<()> {
        for name in [VIEW, NAME] {
            let begin = Instant::now();
            while self.dm.status(name).is_ok() {
                if let Err(e) = self.dm.remove(name) {
                    ensure!(begin.elapsed() < PATIENCE, "removing {name}: {e}");
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn status(&self) -> Result<String> {
        self.dm.status(NAME).context("status")
    }

    pub(crate) fn message(&self, text: &str) -> Result<String> {
        self.dm.message(NAME, text).with_context(|| format!("message {text}"))
    }

    /// The directory of the device in sysfs.
    pub(crate) fn sysfs(&self, mapped: &Mapped) -> PathBuf {
        let name = mapped.node.file_name().unwrap_or_default();
        Path::new("/sys/block").join(name).join("presnap")
    }

    /// Writes random blocks in some places through the mapping, and reads them back. Returns the places.
    pub(crate) fn write(&mut self, mapped: &Mapped, places: usize) -> Result<Vec<usize>> {
        let mut out = Vec::new();
        for _ in 0..places {
            let count = self.rng.usize(1..=8);
            let first = self.rng.usize(..=self.blocks() - count);
            let mut data = Buffer::new(count * BLOCK);
            self.rng.fill(&mut data);
            let at = first * BLOCK;
            mapped.file.write_all_at(&data, at as u64).context("writing")?;
            self.model[at..at + data.len()].copy_from_slice(&data);
            let mut back = Buffer::new(data.len());
            mapped.file.read_exact_at(&mut back, at as u64).context("reading back")?;
            ensure!(back[..] == data[..], "block {first} reads as something else than was written");
            out.extend(first..first + count);
        }
        Ok(out)
    }

    /// Takes a snapshot and waits for its end: its number, and whether it was sealed.
    pub(crate) fn snapshot(&self, words: &str) -> Result<(u32, bool)> {
        let id: u32 = self.message(&format!("snapshot {words}"))?.parse().context("its number")?;
        let begin = Instant::now();
        loop {
            let state = self.message(&format!("state {id}"))?;
            match state.split(' ').nth(1) {
                Some("sealed") => return Ok((id, true)),
                Some("dropped:overflow") => return Ok((id, false)),
                Some(word) if word.starts_with("dropped") || word == "unknown" => {
                    bail!("snapshot {id}: {state}")
                }
                _ => {}
            }
            ensure!(begin.elapsed() < PATIENCE, "snapshot {id} hangs: {state}");
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// Reads an image; `None` if the kernel refuses.
    pub(crate) fn image(&self, mapped: &Mapped, id: u32) -> Result<Option<Vec<u8>>> {
        let params = format!("{} {id}", path(&mapped.node)?);
        let Ok(node) = self.dm.create(VIEW, self.sectors, "presnap-image", &params, true) else {
            return Ok(None);
        };
        let read = || -> Result<Vec<u8>> {
            let file = open(&node, Mode { direct: true, ..Mode::default() })?;
            let mut buffer = Buffer::new(self.model.len());
            file.read_exact_at(&mut buffer, 0).context("reading an image")?;
            Ok(buffer.to_vec())
        };
        let content = read();
        let begin = Instant::now();
        while let Err(e) = self.dm.remove(VIEW) {
            ensure!(begin.elapsed() < PATIENCE, "removing the view: {e}");
            std::thread::sleep(Duration::from_millis(5));
        }
        content.map(Some)
    }
}

/// A path as text.
pub(crate) fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}
