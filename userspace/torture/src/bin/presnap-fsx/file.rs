// SPDX-License-Identifier: GPL-2.0-only

//! One file, as a file system exerciser has it: random operations by all ways into it, against a model of its content.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use memmap2::MmapMut;
use presnap_blockio::{Buffer, Mode};
use rustix::fs::{fallocate, FallocateFlags};

use crate::Limits;

/// Alignment of direct I/O, and of what shifts content.
const BLOCK: u64 = 4096;
/// How many operations an error shows.
const SHOWN: usize = 12;
/// Most bytes of one operation.
const LONGEST: u64 = 96 << 10;

#[derive(Clone, Copy, Debug)]
enum Op {
    Write,
    DirectWrite,
    MapWrite,
    Read,
    DirectRead,
    MapRead,
    Truncate,
    Allocate,
    Punch,
    Zero,
    Collapse,
    Insert,
    Sync,
    DataSync,
    Reopen,
}

/// Reads and writes often, the rest now and then.
const OPS: [Op; 24] = [
    Op::Write,
    Op::Write,
    Op::Write,
    Op::Write,
    Op::DirectWrite,
    Op::DirectWrite,
    Op::MapWrite,
    Op::MapWrite,
    Op::MapWrite,
    Op::Read,
    Op::Read,
    Op::DirectRead,
    Op::MapRead,
    Op::MapRead,
    Op::Truncate,
    Op::Truncate,
    Op::Allocate,
    Op::Punch,
    Op::Zero,
    Op::Collapse,
    Op::Insert,
    Op::Sync,
    Op::DataSync,
    Op::Reopen,
];

struct Exerciser<'a> {
    path: &'a Path,
    file: File,
    direct: File,
    model: Vec<u8>,
    most: u64,
    rng: fastrand::Rng,
    log: VecDeque<String>,
}

pub(crate) fn exercise(path: &Path, seed: u64, most: u64, limits: &Limits) -> Result<u64> {
    let (file, direct) = open(path)?;
    let rng = fastrand::Rng::with_seed(seed);
    let mut it =
        Exerciser { path, file, direct, model: Vec::new(), most, rng, log: VecDeque::new() };
    let mut done = 0;
    while !limits.over() {
        let result = it.step();
        result.with_context(|| {
            let log: Vec<String> = it.log.iter().cloned().collect();
            format!("{}, operation {done}, after {}", path.display(), log.join(", "))
        })?;
        done += 1;
    }
    // What is on the disk, not what is in the cache.
    it.reopen().and_then(|()| it.check(0, it.len())).context("in the end")?;
    Ok(done)
}

fn open(path: &Path) -> Result<(File, File)> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).open(path)?;
    let mode = Mode { write: true, direct: true, exclusive: false, dsync: false };
    Ok((file, presnap_blockio::open(path, mode)?))
}

impl Exerciser<'_> {
    fn len(&self) -> u64 {
        self.model.len() as u64
    }

    /// A range that may reach behind the end by as much as the file may grow.
    fn range(&mut self, growing: bool, align: u64) -> (u64, u64) {
        let limit = if growing { self.most } else { self.len() } / align * align;
        let start = self.rng.u64(..limit.max(1)) / align * align;
        let most = LONGEST.min(limit.saturating_sub(start));
        (start, self.rng.u64(..=most) / align * align)
    }

    fn step(&mut self) -> Result<()> {
        let op = OPS[self.rng.usize(..OPS.len())];
        let align = match op {
            Op::DirectRead | Op::DirectWrite | Op::Collapse | Op::Insert => BLOCK,
            _ => 1,
        };
        let growing = matches!(
            op,
            Op::Write | Op::DirectWrite | Op::MapWrite | Op::Truncate | Op::Allocate | Op::Zero
        );
        let (start, len) = self.range(growing, align);
        self.log.push_back(format!("{op:?} {start}+{len}"));
        if self.log.len() > SHOWN {
            self.log.pop_front();
        }
        match op {
            Op::Truncate => self.resize(start)?,
            Op::Sync => self.file.sync_all()?,
            Op::DataSync => self.file.sync_data()?,
            Op::Reopen => self.reopen()?,
            _ if len == 0 => {}
            Op::Read | Op::DirectRead | Op::MapRead => self.read(op, start, len)?,
            Op::Write | Op::DirectWrite | Op::MapWrite => self.write(op, start, len)?,
            Op::Allocate => {
                let keep = self.rng.bool();
                let flags = if keep { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() };
                fallocate(&self.file, flags, start, len)?;
                if !keep && self.len() < start + len {
                    self.model.resize((start + len) as usize, 0);
                }
            }
            Op::Punch => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&self.file, flags, start, len)?;
                self.zero_model(start, len);
            }
            Op::Zero => {
                fallocate(&self.file, FallocateFlags::ZERO_RANGE, start, len)?;
                if self.len() < start + len {
                    self.model.resize((start + len) as usize, 0);
                }
                self.zero_model(start, len);
            }
            Op::Collapse => {
                // Not to the very end: that would be a truncation, and is refused.
                if start + len < self.len() {
                    fallocate(&self.file, FallocateFlags::COLLAPSE_RANGE, start, len)?;
                    self.model.drain(start as usize..(start + len) as usize);
                }
            }
            Op::Insert => {
                if self.len() + len <= self.most {
                    fallocate(&self.file, FallocateFlags::INSERT_RANGE, start, len)?;
                    let zeroes = vec![0; len as usize];
                    self.model.splice(start as usize..start as usize, zeroes);
                }
            }
        }
        let size = self.file.metadata()?.len();
        ensure!(size == self.len(), "the file has {size} bytes, not {}", self.len());
        Ok(())
    }

    fn zero_model(&mut self, start: u64, len: u64) {
        let end = (start + len).min(self.len()) as usize;
        if let Some(range) = self.model.get_mut(start as usize..end) {
            range.fill(0);
        }
    }

    fn resize(&mut self, len: u64) -> Result<()> {
        self.file.set_len(len)?;
        self.model.resize(len as usize, 0);
        Ok(())
    }

    /// Closes it, drops what is cached, and opens it again.
    fn reopen(&mut self) -> Result<()> {
        self.file.sync_all()?;
        rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed)?;
        (self.file, self.direct) = open(self.path)?;
        Ok(())
    }

    fn write(&mut self, op: Op, start: u64, len: u64) -> Result<()> {
        let end = (start + len) as usize;
        if self.model.len() < end {
            if matches!(op, Op::MapWrite) {
                self.file.set_len(end as u64)?;
            }
            self.model.resize(end, 0);
        }
        let bytes = &mut self.model[start as usize..end];
        self.rng.fill(bytes);
        match op {
            Op::MapWrite => {
                // SAFETY: the file is exercised by this thread alone, and is not made shorter while it is mapped.
                let mut map = unsafe { MmapMut::map_mut(&self.file)? };
                map[start as usize..end].copy_from_slice(bytes);
                if self.rng.bool() {
                    map.flush_range(start as usize, len as usize)?;
                }
            }
            Op::DirectWrite => {
                let mut buffer = Buffer::new(bytes.len());
                buffer.copy_from_slice(bytes);
                self.direct.write_all_at(&buffer, start)?;
            }
            _ => self.file.write_all_at(bytes, start)?,
        }
        Ok(())
    }

    fn read(&mut self, op: Op, start: u64, len: u64) -> Result<()> {
        let len = len.min(self.len() - start);
        match op {
            Op::MapRead => {
                // SAFETY: as above.
                let map = unsafe { MmapMut::map_mut(&self.file)? };
                self.compare(start, &map[start as usize..(start + len) as usize])
            }
            Op::DirectRead => {
                let mut buffer = Buffer::new(len as usize);
                self.direct.read_exact_at(&mut buffer, start)?;
                self.compare(start, &buffer)
            }
            _ => self.check(start, len),
        }
    }

    fn check(&self, start: u64, len: u64) -> Result<()> {
        let mut got = vec![0; len as usize];
        self.file.read_exact_at(&mut got, start)?;
        self.compare(start, &got)
    }

    fn compare(&self, start: u64, got: &[u8]) -> Result<()> {
        let want = &self.model[start as usize..start as usize + got.len()];
        match got.iter().zip(want).position(|(got, want)| got != want) {
            Some(i) => bail!("byte {} is {}, not {}", start + i as u64, got[i], want[i]),
            None => Ok(()),
        }
    }
}
