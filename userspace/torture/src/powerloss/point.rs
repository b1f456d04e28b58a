// SPDX-License-Identifier: GPL-2.0-only

//! One power loss: presnap is loaded on what it left, and checked.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, ensure, Context, Result};
use presnap_blockio::dm::Control;
use presnap_blockio::{open, Buffer, Mode};
use presnap_engine::crc32c::crc32c;
use presnap_engine::manifest::Chunk;
use presnap_engine::region::root::{ROOT_CLEAN, SNAPSHOT_SUPERSET};
use presnap_engine::region::{Scope, SnapshotRecord, SnapshotState};
use presnap_fuzz::recover::{recover, Recovered};

use super::promises::Promises;
use super::replay::Case;
use super::tools::{apply_delta, differs, read, remove, tool, BLOCK, PATIENCE};
use super::Args;
use crate::rng::Rng;
use crate::sector::SECTOR;

const DIRECT: Mode = Mode { write: false, direct: true, exclusive: false, dsync: false };

/// What was seen, so that a run that shows nothing can be told.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    pub(crate) points: usize,
    pub(crate) bad: usize,
    /// Deltas to a base from before the loss.
    deltas: usize,
    /// Blocks in them, and blocks that had changed.
    carried: usize,
    changed: usize,
    /// Deltas that say that they may have too much.
    supersets: usize,
    /// Snapshots from before the loss, of scope image and of scope delta.
    images: usize,
    sealed: usize,
    /// Losses before the first snapshot.
    without_base: usize,
    file_systems: usize,
    /// How long each step took in all.
    times: Vec<(&'static str, Duration)>,
}

impl Shown {
    /// Adds another worker's.
    pub(crate) fn add(&mut self, other: Self) {
        for (to, from) in [
            (&mut self.points, other.points),
            (&mut self.bad, other.bad),
            (&mut self.deltas, other.deltas),
            (&mut self.carried, other.carried),
            (&mut self.changed, other.changed),
            (&mut self.supersets, other.supersets),
            (&mut self.images, other.images),
            (&mut self.sealed, other.sealed),
            (&mut self.without_base, other.without_base),
            (&mut self.file_systems, other.file_systems),
        ] {
            *to += from;
        }
        other.times.into_iter().for_each(|(step, t)| self.took(step, t));
    }

    fn took(&mut self, step: &'static str, time: Duration) {
        match self.times.iter_mut().find(|t| t.0 == step) {
            Some(t) => t.1 += time,
            None => self.times.push((step, time)),
        }
    }

    /// Says it.
    pub(crate) fn print(&self) {
        println!(
            "{} deltas of {} blocks, {} of which had changed, {} of them supersets; {} images, {} sealed snapshots; {} file systems; {} before the first snapshot",
            self.deltas, self.carried, self.changed, self.supersets, self.images, self.sealed, self.file_systems, self.without_base
        );
        let times = self.times.iter().map(|(step, t)| format!("{step} {}", t.as_millis()));
        println!("ms: {}", times.collect::<Vec<_>>().join(", "));
    }
}

/// Where points are looked at, one after the other.
pub(crate) struct Bench<'a> {
    args: &'a Args,
    replicas: &'a HashMap<u32, Vec<u8>>,
    dm: Control,
    name: String,
    /// Paths of origin and region, and the two, opened.
    paths: [PathBuf; 2],
    files: [File; 2],
    /// What they hold.
    pub(crate) disks: Buffer,
    /// Sectors of presnap-torture's part.
    written: u64,
    noise: &'a [u8],
    /// Chunks of which the checksum was found right, by snapshot.
    summed: HashMap<u32, Vec<Chunk>>,
    image: Buffer,
    now: Buffer,
    pub(crate) shown: Shown,
    since: Instant,
    /// Mapped devices that are there, and whether something is mounted.
    mapped: Vec<String>,
    mounted: bool,
}

impl<'a> Bench<'a> {
    /// Number `no`, with disks of its own.
    pub(crate) fn new(
        args: &'a Args,
        no: usize,
        written: u64,
        replicas: &'a HashMap<u32, Vec<u8>>,
        noise: &'a [u8],
    ) -> Result<Self> {
        let mode = Mode { write: true, ..DIRECT };
        let paths =
            [&args.origin, &args.region].map(|paths| paths.get(no).cloned().unwrap_or_default());
        let [origin, region] = [&paths[0], &paths[1]]
            .map(|path| open(path, mode).with_context(|| path.display().to_string()));
        let bytes = args.split as usize * SECTOR;
        let mut bench = Self {
            args,
            replicas,
            dm: Control::open().context("/dev/mapper/control")?,
            name: format!("lost-{no}"),
            paths,
            files: [origin?, region?],
            disks: Buffer::new(bytes + args.region_sectors as usize * SECTOR),
            written,
            noise,
            summed: HashMap::new(),
            image: Buffer::new(bytes),
            now: Buffer::new(bytes),
            shown: Shown::default(),
            since: Instant::now(),
            mapped: Vec::new(),
            mounted: false,
        };
        bench.reread()?;
        Ok(bench)
    }

    /// A step is over.
    pub(crate) fn over(&mut self, step: &'static str) {
        let took = self.since.elapsed();
        self.since = Instant::now();
        self.shown.took(step, took);
    }

    fn bytes(&self) -> usize {
        self.args.split as usize * SECTOR
    }

    fn region(&self) -> &[u8] {
        &self.disks[self.bytes()..]
    }

    fn replica(&self, id: u32) -> Result<&'a [u8]> {
        let replica = self.replicas.get(&id).map(Vec::as_slice);
        replica.with_context(|| format!("snapshot {id}, which was never sealed, is there"))
    }

    /// Reads what the disks hold.
    fn reread(&mut self) -> Result<()> {
        let (origin, region) = self.disks.split_at_mut(self.image.len());
        read(&self.files[0], origin)?;
        read(&self.files[1], region)
    }

    /// Looks at a loss.
    pub(crate) fn look_at(&mut self, case: &Case) -> Result<()> {
        let promises = &case.promises;
        let with_tools = case.number % self.args.tools_each == 0;
        let mut rng = Rng::new(case.seed ^ 1);
        self.write(&case.changed)?;
        self.over("write");
        if let Some(lost) = &case.lost {
            bail!("what was durable is not there: {lost}");
        }
        let before = recover(self.region()).map_err(|e| anyhow!("the region: {e}"))?;
        let sealed = self.check_sealed(&before, promises)?;
        if with_tools {
            tool("presnap", &["check", "--data", &self.paths[1].display().to_string()])?;
        }
        self.over("region");
        let node = self.load()?;
        self.over("create");
        self.check_words(promises, &before, &sealed)?;
        self.over("load");
        let device = open(&node, Mode { write: true, ..DIRECT })?;
        read(&device, &mut self.now)?;
        if let Some(block) = differs(&self.now, &self.disks[..self.bytes()]) {
            bail!("block {block} reads as something else than the origin has");
        }
        self.over("read");
        // It goes on: writes, a snapshot, more writes, which the images must not show.
        self.scribble(&device, &mut rng, true)?;
        let id = self.snapshot()?;
        ensure!(id >= before.root.header.next_snapshot, "the number {id} is used again");
        self.scribble(&device, &mut rng, false)?;
        self.over("snapshot");
        // Each costs as much as the rest: of the old ones another one each time, the new one now and then.
        let old = sealed.iter().filter(|r| r.scope == Scope::Image);
        let old: Vec<u32> = old.map(|r| r.id).collect();
        let mut ids = vec![];
        if !old.is_empty() {
            ids.push(old[rng.below(old.len() as u64) as usize]);
        }
        if case.number % 3 == 0 {
            ids.push(id);
        }
        self.check_images(&node, &ids, id)?;
        self.over("images");
        if with_tools {
            self.check_send(id, before.root.header.base_id)?;
            self.over("send");
            self.check_files(promises, &node)?;
            self.over("files");
        }
        drop(device);
        self.close()?;
        self.over("close");
        self.reread()?;
        self.over("reread");
        self.check_delta(id, promises, &before)?;
        self.over("delta");
        Ok(())
    }

    /// Writes runs of blocks of `disks` to the disks.
    fn write(&self, runs: &[(usize, usize)]) -> Result<()> {
        let border = self.bytes() / BLOCK;
        for &(first, n) in runs {
            for (file, start, from, to) in [
                (&self.files[0], 0, first, (first + n).min(border)),
                (&self.files[1], border, first.max(border), first + n),
            ] {
                if from < to {
                    let bytes = self.disks.get(from * BLOCK..to * BLOCK).context("beyond")?;
                    file.write_all_at(bytes, ((from - start) * BLOCK) as u64)?;
                }
            }
        }
        Ok(())
    }

    /// All that was sealed is in the region as it was.
    fn check_sealed(&mut self, r: &Recovered, promises: &Promises) -> Result<Vec<SnapshotRecord>> {
        let mut all = Vec::new();
        for record in r.root.iter().filter(|s| s.state == SnapshotState::Sealed) {
            let id = record.id;
            let replica = self.replica(id)?;
            ensure!(id > promises.deleted, "snapshot {id}, which was deleted, is back");
            let (chunks, _) =
                r.manifest(self.region(), record).map_err(|e| anyhow!("snapshot {id}: {e}"))?;
            let summed = self.summed.get(&id) == Some(&chunks);
            for chunk in &chunks {
                let at = chunk.start_block as usize * BLOCK;
                let want = replica.get(at..at + chunk.length_blocks as usize * BLOCK);
                let want = want.context("a chunk beyond the end")?;
                let found = r.content(self.region(), chunk);
                ensure!(found == want, "the chunk at {} of snapshot {id}", chunk.start_block);
                ensure!(
                    summed || chunk.is_zero() || crc32c(0, &found) == chunk.checksum,
                    "the checksum of the chunk at {} of snapshot {id}",
                    chunk.start_block
                );
            }
            if !summed {
                self.summed.insert(id, chunks);
            }
            self.shown.sealed += 1;
            all.push(*record);
        }
        for id in &promises.sealed {
            let there = all.iter().any(|s| s.id == *id);
            ensure!(there, "snapshot {id}, which was sealed, is gone");
        }
        Ok(all)
    }

    /// Loads presnap; returns its node.
    fn load(&mut self) -> Result<PathBuf> {
        let params = format!("{} {}", self.paths[0].display(), self.paths[1].display());
        let made = self.dm.create(&self.name, self.args.split, "presnap", &params, false);
        let node = made.map_err(|e| anyhow!("it does not open: {e}; {}", last_words()))?;
        self.mapped.push(self.name.clone());
        Ok(node)
    }

    /// The list, the status.
    fn check_words(
        &self,
        promises: &Promises,
        r: &Recovered,
        sealed: &[SnapshotRecord],
    ) -> Result<()> {
        let list = self.dm.message(&self.name, "list")?;
        let mut listed = Vec::new();
        for line in list.lines().filter(|l| *l != "-") {
            let words: Vec<&str> = line.split(' ').collect();
            let [id, "sealed", scope, base, ..] = words[..] else {
                bail!("a line of the list: {line}")
            };
            listed.push((id.parse::<u32>()?, scope == "image", base.parse::<u32>()?));
        }
        let line = |s: &SnapshotRecord| (s.id, s.scope == Scope::Image, s.base_id);
        let want: Vec<_> = sealed.iter().map(line).collect();
        ensure!(listed == want, "the list is {listed:?}, in the region are {want:?}");
        let status = self.dm.status(&self.name)?;
        // used/total, op, dirty, snapshots, newest, active, mode, flags
        let words: Vec<&str> = status.split(' ').collect();
        let [_, op, _, _, _, _, "rw", flags] = words[..] else { bail!("the status: {status}") };
        let op: u64 = op.parse()?;
        ensure!(op >= promises.op, "operation number {op}, it was {} before", promises.op);
        let base = r.root.header.base_id;
        ensure!(base >= promises.newest, "the base is {base}, {} was sealed", promises.newest);
        ensure!(base == 0 || !flags.contains("full-needed"), "the status: {status}");
        Ok(())
    }

    /// Writes some blocks of presnap-torture's part; `seen` by the snapshot.
    fn scribble(&mut self, device: &File, rng: &mut Rng, seen: bool) -> Result<()> {
        let mut block = Buffer::new(BLOCK);
        for _ in 0..6 {
            let at = rng.below(self.written / 8) as usize * BLOCK;
            block.slice(BLOCK).chunks_exact_mut(8).for_each(|word| {
                word.copy_from_slice(&rng.next().to_le_bytes());
            });
            device.write_all_at(&block, at as u64)?;
            if seen {
                self.now[at..at + BLOCK].copy_from_slice(&block);
            }
        }
        Ok(())
    }

    /// Takes a snapshot and waits for its seal.
    fn snapshot(&self) -> Result<u32> {
        let id = self.dm.message(&self.name, "snapshot scope image").context("snapshot")?;
        let id: u32 = id.parse().with_context(|| format!("a snapshot's id: {id}"))?;
        let begin = Instant::now();
        loop {
            let state = self.dm.message(&self.name, &format!("state {id}"))?;
            let word = state.split(' ').nth(1).unwrap_or_default();
            if word == "sealed" {
                return Ok(id);
            }
            let lost = word.starts_with("dropp") || word == "unknown";
            ensure!(
                !lost && begin.elapsed() < PATIENCE,
                "snapshot {id}: {state}; {}",
                last_words()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// These images are what they were.
    fn check_images(&mut self, node: &Path, ids: &[u32], new: u32) -> Result<()> {
        let name = format!("{}-image", self.name);
        for &id in ids {
            let params = format!("{} {id}", node.display());
            let made = self.dm.create(&name, self.args.split, "presnap-image", &params, true);
            let view = made.map_err(|e| anyhow!("image {id}: {e}; {}", last_words()))?;
            self.mapped.push(name.clone());
            read(&open(&view, DIRECT)?, &mut self.image).with_context(|| format!("image {id}"))?;
            let wrong = if id == new {
                differs(&self.image, &self.now)
            } else {
                self.shown.images += 1;
                differs(&self.image, self.replica(id)?)
            };
            if let Some(block) = wrong {
                bail!("block {block} of image {id} is not what it was");
            }
            remove(&self.dm, &name)?;
            self.mapped.pop();
        }
        Ok(())
    }

    /// The new snapshot's delta brings its base's replica to what the device was.
    fn check_delta(&mut self, id: u32, promises: &Promises, before: &Recovered) -> Result<()> {
        let r = recover(self.region()).map_err(|e| anyhow!("the region, closed: {e}"))?;
        ensure!(r.root.header.flags & ROOT_CLEAN != 0, "closed, and not clean");
        let record = *r.root.find(id).context("the new snapshot is gone")?;
        let base = before.root.header.base_id;
        ensure!(record.state == SnapshotState::Sealed, "snapshot {id} is {:?}", record.state);
        ensure!(record.base_id == base, "snapshot {id} has base {}, not {base}", record.base_id);
        if base == 0 {
            ensure!(promises.newest == 0, "snapshot {id} has no base");
            self.shown.without_base += 1;
            return Ok(());
        }
        let replica = self.replica(base)?;
        let (chunks, _) =
            r.manifest(self.region(), &record).map_err(|e| anyhow!("snapshot {id}: {e}"))?;
        let mut covered = vec![false; self.now.len() / BLOCK];
        for chunk in &chunks {
            let (first, n) = (chunk.start_block as usize, chunk.length_blocks as usize);
            let content = r.content(self.region(), chunk);
            let want = self.now.get(first * BLOCK..(first + n) * BLOCK).context("beyond")?;
            ensure!(content == want, "the chunk at {first} of the new snapshot {id}");
            covered[first..first + n].fill(true);
            self.shown.carried += n;
        }
        for (i, (now, was)) in self.now.chunks(BLOCK).zip(replica.chunks(BLOCK)).enumerate() {
            let changed = now != was;
            ensure!(
                covered[i] || !changed,
                "block {i}, changed, is not in the delta {base} to {id}"
            );
            self.shown.changed += usize::from(changed);
        }
        self.shown.supersets += usize::from(record.flags & SNAPSHOT_SUPERSET != 0);
        self.shown.deltas += 1;
        Ok(())
    }

    /// The same by the command.
    fn check_send(&self, id: u32, base: u32) -> Result<()> {
        if base == 0 {
            return Ok(());
        }
        let mut replica = self.replica(base)?.to_vec();
        apply_delta(&self.name, id, base, &mut replica)?;
        match differs(&replica, &self.now) {
            Some(block) => bail!("block {block} of snapshot {id}, sent as a delta to {base}"),
            None => Ok(()),
        }
    }

    /// The file system has what its writer was told is durable.
    fn check_files(&mut self, promises: &Promises, node: &Path) -> Result<()> {
        let name = format!("{}-files", self.name);
        let params = format!("{} {}", node.display(), self.written);
        let device =
            self.dm.create(&name, self.args.split - self.written, "linear", &params, false)?;
        self.mapped.push(name.clone());
        let device = device.display().to_string();
        let dir = format!("/tmp/{}", self.name);
        std::fs::create_dir_all(&dir)?;
        tool("mount", &["-t", "ext4", &device, &dir])?;
        self.mounted = true;
        if promises.round > 0 {
            let text = std::fs::read_to_string(format!("{dir}/round")).context("the files")?;
            let round: u64 = text.trim().parse().context("the file system's round")?;
            let least = promises.round;
            ensure!(round >= least, "round {round} in the file system, not {least}");
            // Round n: 64 KiB of noise from block n * 13 % 512 on, in file n % 8.
            let file = std::fs::read(format!("{dir}/file{}", round % 8))?;
            let from = (round * 13 % 512) as usize * BLOCK;
            let want = self.noise.get(from..from + 65536).context("--noise is too short")?;
            ensure!(file == want, "the file of round {round}");
        }
        self.unmount()?;
        tool("e2fsck", &["-fn", &device])?;
        remove(&self.dm, &name)?;
        self.mapped.pop();
        self.shown.file_systems += 1;
        Ok(())
    }

    fn unmount(&mut self) -> Result<()> {
        if std::mem::take(&mut self.mounted) {
            tool("umount", &[&format!("/tmp/{}", self.name)])?;
        }
        Ok(())
    }

    /// Takes down what there is.
    fn close(&mut self) -> Result<()> {
        self.unmount()?;
        while let Some(name) = self.mapped.pop() {
            remove(&self.dm, &name)?;
        }
        Ok(())
    }

    /// After a point that was bad: takes down what there is, and looks what the disks hold.
    pub(crate) fn clear(&mut self) -> Result<()> {
        self.close()?;
        self.reread()
    }
}

/// What the kernel said last.
fn last_words() -> String {
    let log = tool("dmesg", &[]).unwrap_or_default();
    let lines: Vec<&str> = log.lines().rev().take(6).collect();
    lines.join(" | ")
}
