// SPDX-License-Identifier: GPL-2.0-only

//! Regions and replicas as files, made by the engine's own formats, and ways to run the command.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use presnap_engine::crc32c::crc32c;
use presnap_engine::manifest::{
    chain_crc, Chunk, PageBuilder, CHUNK_DISCARDED, CHUNK_ZERO, PAGE_BYTES, PAGE_CHUNKS,
};
use presnap_engine::region::index::{INDEX_BYTES, INDEX_ENTRIES};
use presnap_engine::region::root::{MAX_SNAPSHOTS, ROOT_BYTES};
use presnap_engine::region::{
    region_tag, Copy2, IndexBlock, IndexEntry, Layout, Root, RootHeader, Scope, SlotKind,
    SnapshotRecord, SnapshotState, Superblock, NO_SLOT,
};

pub const BLOCK: usize = 4096;

/// Runs `presnap`.
pub fn presnap(args: &[&str]) -> Output {
    command(args).output().expect("presnap runs")
}

/// A `presnap` command, to be changed before it runs.
pub fn command(args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_presnap"));
    c.args(args).stdin(Stdio::null());
    c
}

/// Runs `presnap` with bytes on its standard input.
pub fn presnap_with_input(args: &[&str], input: &[u8]) -> Output {
    let mut child = command(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("presnap runs");
    // It may refuse before it has read all.
    let _ = child.stdin.take().expect("a pipe").write_all(input);
    child.wait_with_output().expect("presnap ends")
}

pub fn stdout(o: &Output) -> String {
    String::from_utf8_lossy(&o.stdout).into_owned()
}

pub fn stderr(o: &Output) -> String {
    String::from_utf8_lossy(&o.stderr).into_owned()
}

/// It worked.
#[track_caller]
pub fn ok(o: Output) -> String {
    assert!(o.status.success(), "status {:?}: {}", o.status, stderr(&o));
    stdout(&o)
}

/// It failed with status 1 and these words.
#[track_caller]
pub fn refused(o: Output, words: &str) {
    assert_eq!(o.status.code(), Some(1), "{}{}", stdout(&o), stderr(&o));
    assert!(stderr(&o).contains(words), "`{words}` is not in: {}", stderr(&o));
}

/// A small random generator, so that tests repeat.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// What a snapshot changes: runs of blocks with content, or zero.
#[derive(Clone)]
pub enum Change {
    Data(u64, Vec<u8>),
    Zero(u64, u32, bool),
}

/// A world of one origin, its region and the images of its snapshots.
pub struct World {
    pub dir: tempfile::TempDir,
    pub origin: PathBuf,
    pub region: PathBuf,
    pub blocks: u64,
    /// Image of each snapshot.
    pub images: BTreeMap<u32, Vec<u8>>,
    superblock: Superblock,
    layout: Layout,
    entries: BTreeMap<u32, IndexEntry>,
    root: Root<Vec<SnapshotRecord>>,
    next_slot: u32,
    seq: u64,
}

impl World {
    /// An origin of `blocks` blocks with random content, and a formatted region.
    pub fn new(blocks: u64, seed: u64) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (origin, region) = (dir.path().join("origin"), dir.path().join("region"));
        let mut rng = Rng(seed);
        let mut content = vec![0u8; blocks as usize * BLOCK];
        for block in content.chunks_exact_mut(BLOCK) {
            if rng.below(3) != 0 {
                fill(block, rng.next());
            }
        }
        std::fs::write(&origin, &content).expect("written");
        File::create(&region).and_then(|f| f.set_len(1500 * BLOCK as u64)).expect("made");
        ok(presnap(&["format", "--origin", path(&origin), path(&region)]));
        let bytes = std::fs::read(&region).expect("read");
        let superblock = Superblock::decode(&bytes).expect("a superblock");
        let layout = Layout::for_region(superblock.region_blocks).expect("a layout");
        let mut header = RootHeader::fresh(superblock.region_uuid);
        header.next_op = 1_000_000;
        let mut world = Self {
            dir,
            origin,
            region,
            blocks,
            images: BTreeMap::new(),
            superblock,
            layout,
            entries: BTreeMap::new(),
            root: Root::new(vec![SnapshotRecord::ZERO; MAX_SNAPSHOTS], header),
            next_slot: 3,
            seq: 1,
        };
        world.images.insert(0, content);
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, block: u64, bytes: &[u8]) {
        let f = OpenOptions::new().write(true).open(&self.region).expect("open");
        f.write_all_at(bytes, block * BLOCK as u64).expect("written");
    }

    fn slot(&mut self, bytes: &[u8], block: u64, kind: SlotKind, snapshot: u32) -> u32 {
        let slot = self.next_slot;
        self.next_slot += 1;
        self.write(self.layout.slot_block(slot), bytes);
        self.entries.insert(slot, IndexEntry { block, kind, snapshot, crc: crc32c(0, bytes) });
        slot
    }

    /// Adds a sealed snapshot with the given changes (ascending), in chunks as they come.
    pub fn snapshot(&mut self, base: u32, changes: &[Change]) -> u32 {
        let id = self.root.header.next_snapshot;
        let mut image = self.images.last_key_value().expect("an image").1.clone();
        let mut chunks = Vec::new();
        for change in changes {
            match change {
                Change::Data(start, data) => {
                    let at = *start as usize * BLOCK;
                    image[at..at + data.len()].copy_from_slice(data);
                    let slot = self.next_slot;
                    for (i, block) in data.chunks_exact(BLOCK).enumerate() {
                        self.slot(block, start + i as u64, SlotKind::Data, id);
                    }
                    chunks.push(Chunk {
                        start_block: *start,
                        length_blocks: (data.len() / BLOCK) as u32,
                        slot,
                        score: (id * 1000) as u16,
                        flags: 0,
                        checksum: crc32c(0, data),
                    });
                }
                Change::Zero(start, length, discarded) => {
                    let at = *start as usize * BLOCK;
                    image[at..at + *length as usize * BLOCK].fill(0);
                    chunks.push(Chunk {
                        start_block: *start,
                        length_blocks: *length,
                        slot: NO_SLOT,
                        score: 0,
                        flags: if *discarded { CHUNK_ZERO | CHUNK_DISCARDED } else { CHUNK_ZERO },
                        checksum: 0,
                    });
                }
            }
        }
        let pages: Vec<&[Chunk]> = chunks.chunks(PAGE_CHUNKS as usize).collect();
        let head = self.next_slot;
        let mut crc = 0;
        for (no, part) in pages.iter().enumerate() {
            let mut page = [0; PAGE_BYTES];
            let mut builder = PageBuilder::new(&mut page, id, no as u32);
            part.iter().for_each(|c| builder.push(c).expect("room"));
            let next = (no + 1 < pages.len()).then_some(self.next_slot + 1);
            crc = chain_crc(crc, builder.finish(next));
            self.slot(&page, no as u64, SlotKind::Manifest, id);
        }
        let record = SnapshotRecord {
            id,
            base_id: base,
            state: SnapshotState::Sealed,
            scope: Scope::Image,
            predictor: 2,
            op_first: u64::from(id) * 100,
            op_last: u64::from(id) * 100 + 99,
            t0_realtime_ns: 1_700_000_000_000_000_000 + u64::from(id),
            delta_blocks: chunks.iter().map(|c| u64::from(c.length_blocks)).sum(),
            manifest_pages: pages.len() as u32,
            manifest_chunks: chunks.len() as u32,
            manifest_crc: crc,
            manifest_head_slot: if pages.is_empty() { NO_SLOT } else { head },
            freeze_ns: 1_234_567,
            ..SnapshotRecord::ZERO
        };
        self.root.header.next_snapshot = id + 1;
        self.root.insert(record).expect("room in the root");
        self.images.insert(id, image);
        self.flush();
        id
    }

    /// Random changes of some blocks.
    pub fn random_changes(&self, seed: u64) -> Vec<Change> {
        let mut rng = Rng(seed);
        let mut out = Vec::new();
        let mut at = rng.below(8);
        while at < self.blocks {
            let length = (1 + rng.below(10)).min(self.blocks - at);
            if rng.below(5) == 0 {
                out.push(Change::Zero(at, length as u32, rng.below(2) == 0));
            } else {
                let mut data = vec![0; length as usize * BLOCK];
                data.chunks_exact_mut(BLOCK).for_each(|b| fill(b, rng.next()));
                out.push(Change::Data(at, data));
            }
            at += length + rng.below(30);
        }
        out
    }

    /// Writes index and root, as the kernel does: to the copy that is not the newest.
    fn flush(&mut self) {
        self.seq += 1;
        let copy = if self.seq % 2 == 0 { Copy2::B } else { Copy2::A };
        for no in 0..self.layout.index_blocks {
            let first = self.layout.index_first_slot(no);
            let entries = (first..first + INDEX_ENTRIES)
                .map(|slot| self.entries.get(&slot).copied().unwrap_or(IndexEntry::FREE));
            let mut block = [0; INDEX_BYTES];
            let tag = region_tag(&self.superblock.region_uuid);
            IndexBlock::encode(&mut block, tag, no, self.seq, entries);
            self.write(self.layout.index_copy_block(no, copy), &block);
        }
        self.root.header.seq = self.seq;
        let mut bytes = vec![0; ROOT_BYTES];
        self.root.encode_into(bytes.first_chunk_mut().expect("32 KiB"));
        self.write(self.layout.root_block(copy), &bytes);
    }

    /// The copy of the root and the index that counts now.
    pub fn newest(&self) -> Copy2 {
        if self.seq % 2 == 0 {
            Copy2::B
        } else {
            Copy2::A
        }
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Flips a bit of the region.
    pub fn damage(&self, block: u64, byte: u64) {
        flip(&self.region, block * BLOCK as u64 + byte);
    }

    /// The slot of a block of a snapshot.
    pub fn slot_of(&self, snapshot: u32, block: u64) -> u32 {
        let found = self
            .entries
            .iter()
            .find(|(_, e)| e.kind == SlotKind::Data && e.snapshot == snapshot && e.block == block);
        *found.expect("the block is preserved").0
    }

    /// Writes an image to a file and returns its path.
    pub fn image_file(&self, id: u32) -> PathBuf {
        let path = self.path(&format!("image-{id}"));
        std::fs::write(&path, &self.images[&id]).expect("written");
        path
    }

    /// A full stream of a snapshot.
    pub fn full(&self, id: u32) -> Vec<u8> {
        let image = self.image_file(id);
        let args = ["send", path(&self.region), &id.to_string(), "--image-device", path(&image)];
        let out = presnap(&args);
        assert!(out.status.success(), "{}", stderr(&out));
        out.stdout
    }

    /// A delta.
    pub fn delta(&self, id: u32, base: u32) -> Vec<u8> {
        let out =
            presnap(&["send", path(&self.region), &id.to_string(), "--base", &base.to_string()]);
        assert!(out.status.success(), "{}", stderr(&out));
        out.stdout
    }
}

pub fn fill(block: &mut [u8], seed: u64) {
    let mut rng = Rng(seed | 1);
    for word in block.chunks_exact_mut(8) {
        word.copy_from_slice(&(rng.next() | 1).to_le_bytes());
    }
}

pub fn path(p: &Path) -> &str {
    p.to_str().expect("a plain path")
}

/// Flips the lowest bit of a byte of a file.
pub fn flip(file: &Path, at: u64) {
    let f = OpenOptions::new().read(true).write(true).open(file).expect("open");
    let mut byte = [0];
    f.read_exact_at(&mut byte, at).expect("read");
    f.write_all_at(&[byte[0] ^ 1], at).expect("written");
}

/// A replica as a file, with its record.
pub struct Replica {
    pub target: PathBuf,
    pub record: PathBuf,
}

impl Replica {
    pub fn new(world: &World, name: &str, blocks: u64) -> Self {
        let target = world.path(name);
        File::create(&target).and_then(|f| f.set_len(blocks * BLOCK as u64)).expect("made");
        let record = world.path(&format!("{name}.record"));
        Self { target, record }
    }

    pub fn receive(&self, stream: &[u8], more: &[&str]) -> Output {
        let mut args = vec!["receive", path(&self.target), "--record", path(&self.record)];
        args.extend(more);
        presnap_with_input(&args, stream)
    }

    /// Everything that a receive could change.
    pub fn state(&self) -> (Vec<u8>, Option<Vec<u8>>) {
        (std::fs::read(&self.target).expect("read"), std::fs::read(&self.record).ok())
    }

    pub fn spool(&self) -> PathBuf {
        let mut name = self.record.as_os_str().to_owned();
        name.push(".spool");
        PathBuf::from(name)
    }

    #[track_caller]
    pub fn holds(&self, image: &[u8]) {
        let got = std::fs::read(&self.target).expect("read");
        assert!(got.len() >= image.len());
        let differs = got.chunks(BLOCK).zip(image.chunks(BLOCK)).position(|(a, b)| a != b);
        assert_eq!(differs, None, "block differs");
    }
}
