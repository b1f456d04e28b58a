// SPDX-License-Identifier: GPL-2.0-only

//! `presnap send`: writes a snapshot as a stream, in full or as a delta.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::{anyhow, bail, Context, Result};
use presnap_blockio::{Buffer, Mode};
use presnap_engine::crc32c::crc32c;
use presnap_engine::geometry::{BLOCK_BYTES, SECTOR_BYTES};
use presnap_engine::region::{Scope, SnapshotRecord};
use presnap_engine::replication::{
    Encoder, ResumePoint, StreamError, StreamHeader, MAX_DATA_BLOCKS, STREAM_FULL,
    STREAM_HEADER_BYTES, STREAM_SUPERSET,
};

use super::image;
use crate::delta::{chain, is_superset, union, Piece};
use crate::output::{usage, Progress};
use crate::source::{Hold, Source};
use crate::store::{Store, BLOCK};
use crate::units;

/// Write a snapshot as a stream for `presnap receive`
///
/// With --base: the changes since that snapshot, read from the region. Without: all of the image, which needs scope
/// `image`; zero blocks take no space. The stream has checksums throughout, so any pipe or file will do:
///
///   presnap send data 4 --base 3 | ssh replica presnap receive /dev/vg/copy
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The device, or (with --base) a region that is not in use
    #[arg(value_name = "DEV")]
    device: String,
    /// The snapshot
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    id: u32,
    /// Send only what changed since this snapshot, which the replica must hold
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u32).range(1..))]
    base: Option<u32>,
    /// Read the full image from this device or file instead of making a view of it
    #[arg(long, value_name = "PATH", conflicts_with = "base")]
    image_device: Option<PathBuf>,
    /// Write to a file instead of to standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Show progress even if stderr is no terminal
    #[arg(long)]
    progress: bool,
}

impl Args {
    /// Sends.
    pub(crate) fn run(self) -> Result<()> {
        if self.output.is_none() && std::io::stdout().is_terminal() {
            return Err(usage("a stream is not for a terminal: use a pipe or -o FILE"));
        }
        // However it ends, the snapshot must be released and the view removed.
        presnap_blockio::ignore_sigpipe();
        presnap_blockio::stop_on_signals();
        let source = Source::find(&self.device)?;
        let out: Box<dyn Write> = match &self.output {
            Some(path) => Box::new(
                File::create(path).with_context(|| format!("--output {}", path.display()))?,
            ),
            None => Box::new(std::io::stdout().lock()),
        };
        let result = match self.base {
            Some(base) => self.delta(&source, base, out),
            None => self.full(&source, out),
        };
        if let (Err(_), Some(path)) = (&result, &self.output) {
            let _ = std::fs::remove_file(path);
        }
        result
    }

    fn delta(&self, source: &Source, base: u32, out: Box<dyn Write>) -> Result<()> {
        // Looked at once to know what must be held, and again once it is.
        let ids: Vec<u32> = chain(&source.store()?, base, self.id)?.iter().map(|r| r.id).collect();
        let _holds = ids.iter().map(|&id| Hold::new(source, id)).collect::<Result<Vec<_>>>()?;
        let store = source.store()?;
        let chain = chain(&store, base, self.id)?;
        let manifests =
            chain.iter().rev().map(|r| store.manifest(r)).collect::<Result<Vec<_>>>()?;
        let pieces = union(&manifests);
        let total = pieces.iter().map(|p| u64::from(p.length)).sum();
        let newest = chain.last().context("an empty chain")?;
        let mut header = header_of(&store, newest);
        header.base = base;
        header.op_first = chain.first().map_or(0, |r| r.op_first);
        header.total_blocks = total;
        header.flags = if is_superset(&chain) { STREAM_SUPERSET } else { 0 };
        let mut stream = Stream::begin(out, &header, self.progress)?;
        let mut verified = HashSet::new();
        for piece in &pieces {
            if piece.chunk.is_zero() {
                stream.zero(piece.start, u64::from(piece.length), true)?;
                continue;
            }
            // Chunks may lie in the same slots, if somebody forged them: each has to be what it says.
            let of = (piece.chunk.slot, piece.chunk.length_blocks, piece.chunk.checksum);
            if !piece.is_whole() && verified.insert(of) {
                verify(&store, piece)?;
            }
            send_piece(&store, piece, &mut stream)?;
        }
        stream.end()
    }

    fn full(&self, source: &Source, out: Box<dyn Write>) -> Result<()> {
        let _hold = Hold::new(source, self.id)?;
        let store = source.store()?;
        let record = *store.find_sealed(self.id)?;
        let view;
        let path = match (&self.image_device, source) {
            (Some(path), _) => path.clone(),
            (None, Source::Live(dm, _)) => {
                if record.scope != Scope::Image {
                    bail!(
                        "snapshot {} has scope delta, so its image cannot be read: take one with --scope image for a full send, or give --base",
                        self.id
                    );
                }
                let name = format!("presnap-send-{}-{}", self.id, std::process::id());
                image::create(dm, &store, self.id, &name)
                    .context("cannot make a view of the image")?;
                view = View(name);
                PathBuf::from("/dev/mapper").join(&view.0)
            }
            (None, Source::Region(_)) => {
                bail!("a region alone holds no full image: give --base, or --image-device")
            }
        };
        let mut header = header_of(&store, &record);
        header.flags = STREAM_FULL;
        header.total_blocks = header.origin_blocks();
        send_image(&path, &header, out, self.progress)
            .with_context(|| format!("image {}", path.display()))
    }
}

/// A view that is removed in the end.
struct View(String);

impl Drop for View {
    fn drop(&mut self) {
        if let Err(e) = image::remove(&self.0) {
            eprintln!("presnap: the view {} stays: {e:#}", self.0);
        }
    }
}

fn header_of(store: &Store, record: &SnapshotRecord) -> StreamHeader {
    StreamHeader {
        flags: 0,
        region_uuid: store.superblock.region_uuid,
        origin_id: store.superblock.origin_id,
        origin_sectors: record.image_sectors(store.superblock.origin_sectors),
        snapshot: record.id,
        base: 0,
        op_first: record.op_first,
        op_last: record.op_last,
        t0_realtime_ns: record.t0_realtime_ns,
        total_blocks: 0,
        start: ResumePoint::START,
    }
}

/// A stream being written.
struct Stream {
    out: BufWriter<Box<dyn Write>>,
    encoder: Encoder,
    progress: Progress,
    total: u64,
}

fn words(e: StreamError) -> anyhow::Error {
    anyhow!("{e}")
}

impl Stream {
    fn begin(out: Box<dyn Write>, header: &StreamHeader, progress: bool) -> Result<Self> {
        let mut out = BufWriter::with_capacity(1 << 20, out);
        let mut bytes = [0; STREAM_HEADER_BYTES];
        header.encode(&mut bytes);
        // What the receiver would refuse is not sent.
        let checked = StreamHeader::decode(&bytes).map_err(words)?;
        out.write_all(&bytes).context("writing the stream")?;
        Ok(Self {
            out,
            encoder: Encoder::new(&checked),
            progress: Progress::new(progress),
            total: header.total_blocks,
        })
    }

    /// Sends whole blocks.
    fn data(&mut self, start: u64, data: &[u8]) -> Result<()> {
        let most = MAX_DATA_BLOCKS as usize * BLOCK;
        let mut at = start;
        for part in data.chunks(most) {
            let blocks = (part.len() / BLOCK) as u32;
            let record = self.encoder.data(at, blocks, crc32c(0, part)).map_err(words)?;
            self.out.write_all(&record).context("writing the stream")?;
            self.out.write_all(part).context("writing the stream")?;
            at += u64::from(blocks);
        }
        self.show()
    }

    fn zero(&mut self, start: u64, blocks: u64, discarded: bool) -> Result<()> {
        let (mut at, end) = (start, start + blocks);
        while at < end {
            let n = u32::try_from(end - at).unwrap_or(u32::MAX);
            let record = self.encoder.zero(at, n, discarded).map_err(words)?;
            self.out.write_all(&record).context("writing the stream")?;
            at += u64::from(n);
        }
        self.show()
    }

    /// Shows how far it is, and ends it if that was asked for.
    fn show(&mut self) -> Result<()> {
        if presnap_blockio::stop_on_signals().load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        let (done, total) = (self.encoder.position().blocks, self.total);
        self.progress.show(|| format!("sent {} of {}", units::blocks(done), units::blocks(total)));
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        let record = self.encoder.end().map_err(words)?;
        self.out.write_all(&record).context("writing the stream")?;
        self.out.flush().context("writing the stream")
    }
}

/// Blocks read at a time.
const STEP: usize = MAX_DATA_BLOCKS as usize * 4;

/// Checks all of the chunk that a piece is a part of.
fn verify(store: &Store, piece: &Piece) -> Result<()> {
    let chunk = Piece {
        start: piece.chunk.start_block,
        length: piece.chunk.length_blocks,
        chunk: piece.chunk,
    };
    read_piece(store, &chunk, |_, _| Ok(()))
}

fn send_piece(store: &Store, piece: &Piece, stream: &mut Stream) -> Result<()> {
    read_piece(store, piece, |start, data| stream.data(start, data))
}

/// Reads a piece step by step; if it is all of its chunk, its checksum is checked. An error after data were sent leaves
/// the stream without an end, so that the receiver changes nothing.
pub(crate) fn read_piece(
    store: &Store,
    piece: &Piece,
    mut each: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let mut buffer = Buffer::new((piece.length as usize).min(STEP) * BLOCK);
    let (mut done, mut crc) = (0u32, 0);
    while done < piece.length {
        let n = ((piece.length - done) as usize).min(STEP);
        let data = buffer.slice(n * BLOCK);
        store.read_slots(piece.slot().saturating_add(done), data)?;
        crc = crc32c(crc, data);
        let last = done as usize + n == piece.length as usize;
        if last && piece.is_whole() && crc != piece.chunk.checksum {
            bail!(
                "the region is damaged: blocks {}+{} have checksum {crc:08x}, the manifest says {:08x}",
                piece.start,
                piece.length,
                piece.chunk.checksum
            );
        }
        each(piece.start + u64::from(done), data)?;
        done += n as u32;
    }
    Ok(())
}

/// Sends a whole image; runs of zero blocks as such.
fn send_image(
    path: &Path,
    header: &StreamHeader,
    out: Box<dyn Write>,
    progress: bool,
) -> Result<()> {
    let image = presnap_blockio::open(path, Mode { direct: true, ..Mode::default() })?;
    let sectors = presnap_blockio::size(&image)? / u64::from(SECTOR_BYTES);
    if sectors < header.origin_sectors {
        bail!("it has {sectors} sectors, the origin {}", header.origin_sectors);
    }
    let mut stream = Stream::begin(out, header, progress)?;
    let total = header.origin_blocks();
    let mut buffer = Buffer::new(STEP * BLOCK);
    // Zero blocks that were read and not sent yet.
    let (mut zero_start, mut at) = (0, 0);
    while at < total {
        let n = (total - at).min(STEP as u64) as usize;
        let (_, sectors) = header.sectors_of(at, n as u32);
        let data = buffer.slice(n * BLOCK);
        let bytes = sectors as usize * SECTOR_BYTES as usize;
        data[bytes..].fill(0);
        image
            .read_exact_at(&mut data[..bytes], at * u64::from(BLOCK_BYTES))
            .with_context(|| format!("reading blocks {at}+{n}"))?;
        let zero: Vec<bool> = data.chunks_exact(BLOCK).map(is_zero).collect();
        let mut i = 0;
        while i < n {
            let same = zero[i..].iter().take_while(|&&z| z == zero[i]).count();
            if !zero[i] {
                let start = at + i as u64;
                if zero_start < start {
                    stream.zero(zero_start, start - zero_start, false)?;
                }
                stream.data(start, &data[i * BLOCK..(i + same) * BLOCK])?;
                zero_start = start + same as u64;
            }
            i += same;
        }
        at += n as u64;
    }
    if zero_start < total {
        stream.zero(zero_start, total - zero_start, false)?;
    }
    stream.end()
}

/// Whether a block is zero; in words, as this runs over whole images.
fn is_zero(block: &[u8]) -> bool {
    block.chunks_exact(64).all(|line| line.iter().fold(0u8, |a, &b| a | b) == 0)
}
