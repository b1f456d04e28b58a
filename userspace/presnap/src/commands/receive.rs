// SPDX-License-Identifier: GPL-2.0-only

//! `presnap receive`: checks a whole stream, then applies it to a replica.

use std::fs::File;
use std::io::{BufReader, BufWriter, IsTerminal, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail, Context, Result};
use presnap_blockio::{Buffer, Mode};
use presnap_engine::geometry::SECTOR_BYTES;
use presnap_engine::replication::{
    Action, Event, Need, Receiver, StreamError, StreamHeader, MAX_DATA_BLOCKS, RECORD_HEADER_BYTES,
    STREAM_HEADER_BYTES,
};

use super::format::content;
use crate::output::{usage, Progress};
use crate::replica::{default_path, fingerprint, make_directory_of, Record};
use crate::store::BLOCK;
use crate::units;

/// Apply a stream of `presnap send` to a replica
///
/// The stream is read from standard input and stored (spooled) whole. Only when all of it has been checked, and fits
/// what the target holds, is the target changed; if that is interrupted, the next receive completes it. What the target
/// holds is kept in a record; a target that was changed by others since (mounted, say) is refused.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Device or file to apply the stream to
    target: PathBuf,
    /// Directory for the spool; default: that of the record
    #[arg(long, value_name = "DIR")]
    spool: Option<PathBuf>,
    /// File with the record of what TARGET holds; default: one in /var/lib/presnap/replicas
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Overwrite a target that holds something else, and apply a delta to one that was changed by others
    #[arg(long)]
    force: bool,
    /// Apply while receiving, without a spool: a bad stream leaves the target unusable until a good one is received
    #[arg(long, conflicts_with = "spool")]
    no_spool: bool,
    /// Show progress (not the default, as the sender shows its own)
    #[arg(long)]
    progress: bool,
    /// Say nothing when done
    #[arg(short, long)]
    quiet: bool,
}

/// An error of the stream.
fn words(e: StreamError) -> anyhow::Error {
    anyhow!("{e}")
}

impl Args {
    /// Receives.
    pub(crate) fn run(self) -> Result<()> {
        let target = Target::open(&self.target)?;
        let record_path = match &self.record {
            Some(path) => path.clone(),
            None => default_path(&self.target)?,
        };
        let spool_path = self.spool_path(&record_path);
        let mut record = Record::load(record_path)?;
        self.complete_interrupted(&target, &mut record, &spool_path)?;
        if std::io::stdin().is_terminal() {
            return Err(usage("a stream is not typed: give it on standard input"));
        }
        let input = std::io::stdin().lock();
        if self.no_spool {
            let mut input = BufReader::with_capacity(1 << 20, input);
            return self.apply(&target, &mut record, &mut input, false);
        }
        if let Err(e) = self.spool(input, &spool_path, &target, &record) {
            let _ = std::fs::remove_file(&spool_path);
            return Err(e);
        }
        let file =
            File::open(&spool_path).with_context(|| format!("spool {}", spool_path.display()))?;
        let mut input = BufReader::with_capacity(1 << 20, file);
        self.apply(&target, &mut record, &mut input, false)?;
        let _ = std::fs::remove_file(&spool_path);
        Ok(())
    }

    fn spool_path(&self, record: &Path) -> PathBuf {
        let mut name = record.file_name().unwrap_or_default().to_owned();
        name.push(".spool");
        match &self.spool {
            Some(dir) => dir.join(name),
            None => record.with_file_name(name),
        }
    }

    /// Completes what an earlier receive could not.
    fn complete_interrupted(
        &self,
        target: &Target,
        record: &mut Record,
        spool: &Path,
    ) -> Result<()> {
        if record.replica.receiving == 0 {
            // Left by a receive that was stopped before it changed anything.
            let _ = std::fs::remove_file(spool);
            return Ok(());
        }
        let snapshot = record.replica.receiving;
        let Ok(file) = File::open(spool) else {
            eprintln!(
                "presnap: the last receive, of snapshot {snapshot}, was interrupted and its spool {} is gone",
                spool.display()
            );
            return Ok(());
        };
        eprintln!("presnap: completing the interrupted receive of snapshot {snapshot}");
        let mut input = BufReader::with_capacity(1 << 20, file);
        self.apply(target, record, &mut input, true)
            .with_context(|| format!("spool {}", spool.display()))?;
        let _ = std::fs::remove_file(spool);
        Ok(())
    }

    /// Whether a stream fits the target; nothing has been changed yet.
    fn accept(&self, header: &StreamHeader, target: &Target, record: &Record) -> Result<()> {
        let shown = self.target.display();
        record.replica.accept(header, target.sectors, self.force).map_err(|e| match e {
            StreamError::WouldOverwrite => anyhow!("{shown}: {e}: --force allows it"),
            StreamError::NoBase => anyhow!(
                "{shown} holds no snapshot that is known here (the stream is a delta to snapshot {}): send in full first, with no --base",
                header.base
            ),
            StreamError::BaseMismatch { .. } => {
                anyhow!("{shown}: {e}: send with --base {}", record.replica.snapshot)
            }
            _ => anyhow!("{shown}: {e}"),
        })?;
        if self.force {
            return Ok(());
        }
        if header.is_full() {
            if record.replica.is_empty() {
                let bytes = target.sectors * u64::from(SECTOR_BYTES);
                if let Some(found) = content(&target.file, bytes)? {
                    bail!("{shown} holds {found}, and no snapshot that is known here: --force overwrites it");
                }
            }
        } else if let Some(print) = record.fingerprint {
            // Of what it holds: the origin may have grown since.
            if target.fingerprint(record.replica.origin_sectors)? != print {
                bail!(
                    "{shown} was changed since snapshot {} was received (was it mounted?): send in full",
                    record.replica.snapshot
                );
            }
        }
        Ok(())
    }

    /// Stores the stream durably while checking it.
    fn spool(&self, input: impl Read, path: &Path, target: &Target, record: &Record) -> Result<()> {
        let spool = || format!("spool {}", path.display());
        let directory = make_directory_of(path).with_context(spool)?;
        let file = File::create(path).with_context(spool)?;
        let mut out = BufWriter::with_capacity(1 << 20, &file);
        let mut input = BufReader::with_capacity(1 << 20, input);
        let mut progress = Progress::only_if(self.progress);
        pump(&mut input, |receiver, action, bytes| {
            if let Action::Begin(header) = action {
                self.accept(&header, target, record)?;
            }
            out.write_all(bytes).with_context(spool)?;
            show(&mut progress, "received", receiver);
            Ok(())
        })?;
        out.flush().with_context(spool)?;
        file.sync_all().with_context(spool)?;
        File::open(directory).and_then(|d| d.sync_all()).with_context(spool)
    }

    /// Applies a stream, with the record before and after.
    fn apply(
        &self,
        target: &Target,
        record: &mut Record,
        input: &mut impl Read,
        completing: bool,
    ) -> Result<()> {
        let mut progress = Progress::only_if(self.progress);
        let mut header = None;
        let mut zeroes = Buffer::new(1 << 20);
        pump(input, |receiver, action, bytes| {
            match action {
                Action::Begin(h) => {
                    let replica = &record.replica;
                    if completing {
                        let same = replica.receiving == h.snapshot
                            && replica.region_uuid == h.region_uuid
                            && replica.snapshot == h.base;
                        if !same {
                            bail!("it is not the stream that was being applied: remove it, and send again");
                        }
                    } else {
                        self.accept(&h, target, record)?;
                    }
                    let begun = record.replica.begun(&h);
                    record.store(begun, None)?;
                    header = Some(h);
                }
                Action::Write { start_block, blocks } => {
                    let (sector, sectors) =
                        header.as_ref().map_or((0, 0), |h| h.sectors_of(start_block, blocks));
                    let bytes = bytes.get(..sectors as usize * SECTOR_BYTES as usize);
                    let bytes = bytes.context("a record without its data")?;
                    target.file.write_all_at(bytes, sector * u64::from(SECTOR_BYTES))?;
                }
                Action::Zero { start_block, blocks, .. } => {
                    let (sector, sectors) =
                        header.as_ref().map_or((0, 0), |h| h.sectors_of(start_block, blocks));
                    target.zero(sector, sectors, &mut zeroes)?;
                }
                Action::Continue | Action::Complete | Action::Done => {}
            }
            show(&mut progress, "applied", receiver);
            Ok(())
        })?;
        let header = header.context("a stream without a header")?;
        target.file.sync_all().with_context(|| self.target.display().to_string())?;
        let print = target.fingerprint(header.origin_sectors)?;
        let completed = record.replica.completed(&header);
        record.store(completed, Some(print))?;
        progress.done();
        if !self.quiet {
            println!(
                "{} holds snapshot {} (T0 {}, {} received)",
                self.target.display(),
                header.snapshot,
                units::realtime(header.t0_realtime_ns),
                units::blocks(header.total_blocks)
            );
        }
        Ok(())
    }
}

fn show(progress: &mut Progress, verb: &str, receiver: &Receiver) {
    let total = receiver.header().map_or(0, |h| h.total_blocks);
    let done = receiver.position().blocks;
    progress.show(|| format!("{verb} {} of {}", units::blocks(done), units::blocks(total)));
}

/// Reads a stream to its end and hands out each checked part, with its bytes.
fn pump(
    input: &mut impl Read,
    mut each: impl FnMut(&Receiver, Action, &[u8]) -> Result<()>,
) -> Result<()> {
    let mut receiver = Receiver::new();
    let largest =
        (MAX_DATA_BLOCKS as usize * BLOCK).max(STREAM_HEADER_BYTES).max(RECORD_HEADER_BYTES);
    let mut buffer = Buffer::new(largest);
    loop {
        let (event_bytes, over) = match receiver.need() {
            Need::Bytes(n) => {
                let bytes = buffer.slice(n);
                let got = read_up_to(input, bytes)?;
                (&bytes[..got], got < n)
            }
            Need::End => {
                let bytes = buffer.slice(1);
                let got = read_up_to(input, bytes)?;
                (&bytes[..got], got == 0)
            }
        };
        let event = if over { Event::End } else { Event::Bytes(event_bytes) };
        let action = receiver.step(event).map_err(words)?;
        each(&receiver, action, if over { &[] } else { event_bytes })?;
        if action == Action::Done {
            return Ok(());
        }
    }
}

fn read_up_to(input: &mut impl Read, out: &mut [u8]) -> Result<usize> {
    let mut got = 0;
    while got < out.len() {
        match input.read(&mut out[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e).context("reading the stream"),
        }
    }
    Ok(got)
}

/// The opened target.
struct Target {
    file: File,
    sectors: u64,
}

impl Target {
    /// Opens it for itself.
    fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let mode = Mode { write: true, direct: true, exclusive: true, dsync: false };
        let file = presnap_blockio::open(path, mode).map_err(|e| match e.raw_os_error() {
            Some(libc::EBUSY) => anyhow!("{shown} is mounted or otherwise in use"),
            _ => anyhow!("{shown}: {e}"),
        })?;
        let bytes = presnap_blockio::size(&file).with_context(|| shown.to_string())?;
        if !presnap_blockio::is_block_device(&file)? {
            if let Some(user) = presnap_blockio::loop_user(path) {
                bail!("{shown} is in use by {user}");
            }
            if !presnap_blockio::try_lock(&file)? {
                bail!("{shown} is being received to already");
            }
        }
        Ok(Self { file, sectors: bytes / u64::from(SECTOR_BYTES) })
    }

    fn fingerprint(&self, sectors: u64) -> Result<u32> {
        fingerprint(&self.file, sectors / 8).context("reading the target")
    }

    /// Zeroes a run: by the device's own command, or by writing.
    fn zero(&self, sector: u64, sectors: u64, zeroes: &mut Buffer) -> Result<()> {
        let (start, len) = (sector * u64::from(SECTOR_BYTES), sectors * u64::from(SECTOR_BYTES));
        if len == 0 || presnap_blockio::zero(&self.file, start, len).is_ok() {
            return Ok(());
        }
        let mut at = 0;
        while at < len {
            let n = (len - at).min(zeroes.len() as u64);
            self.file.write_all_at(zeroes.slice(n as usize), start + at)?;
            at += n;
        }
        Ok(())
    }
}
