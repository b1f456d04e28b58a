// SPDX-License-Identifier: GPL-2.0-only

//! `presnap show`: the manifest of a snapshot.

use anyhow::Result;
use presnap_engine::manifest::{Chunk, CHUNK_DISCARDED};
use presnap_engine::region::root::{SNAPSHOT_AFTER_CRASH, SNAPSHOT_SUPERSET};
use presnap_engine::region::{SnapshotRecord, SnapshotState};
use serde_json::{json, Map, Value};

use crate::output;
use crate::source::Source;
use crate::units;

/// Show a snapshot: its manifest from the region, with statistics and chunks
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The device, or a region that is not in use
    #[arg(value_name = "DEV")]
    device: String,
    /// The snapshot
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    id: u32,
    /// Print as JSON, with all chunks
    #[arg(long)]
    json: bool,
    /// List the chunks
    #[arg(long)]
    chunks: bool,
}

/// The name of a predictor number.
fn predictor(number: u8) -> &'static str {
    match number {
        0 => "off",
        1 => "age",
        2 => "ewma",
        3 => "stream",
        4 => "model",
        _ => "unknown",
    }
}

/// The statistics of a record.
fn statistics(r: &SnapshotRecord) -> Vec<(&'static str, u64)> {
    vec![
        ("freeze_ns", r.freeze_ns),
        ("inflight_wait_ns", r.inflight_wait_ns),
        ("seal_ns", r.seal_ns),
        ("delta_blocks", r.delta_blocks),
        ("staged_valid_blocks", r.staged_valid_blocks),
        ("stale_blocks", r.stale_blocks),
        ("final_copy_blocks", r.final_copy_blocks),
        ("guarded_blocks", r.guarded_blocks),
        ("drained_blocks", r.drained_blocks),
        ("copied_blocks_total", r.copied_blocks_total),
        ("staged_clean_blocks", r.staged_clean_blocks),
        ("mirrored_writes", r.mirrored_writes),
        ("guard_stalls", r.guard_stalls),
        ("hits", r.hits),
        ("misses", r.misses),
        ("wasted", r.wasted),
    ]
}

impl Args {
    /// Shows it.
    pub(crate) fn run(self) -> Result<()> {
        let source = Source::find(&self.device)?;
        let store = source.store()?;
        let r = *store.find(self.id)?;
        let flags: Vec<&str> =
            [(SNAPSHOT_SUPERSET, "superset"), (SNAPSHOT_AFTER_CRASH, "after-crash")]
                .iter()
                .filter(|(bit, _)| r.flags & bit != 0)
                .map(|(_, word)| *word)
                .collect();
        let chunks =
            if r.state == SnapshotState::Sealed { store.manifest(&r)? } else { Vec::new() };
        if self.json {
            let statistics: Map<String, Value> =
                statistics(&r).into_iter().map(|(k, v)| (k.to_string(), v.into())).collect();
            return output::json(&json!({
                "id": r.id,
                "base": r.base_id,
                "state": r.state.as_str(),
                "scope": r.scope.as_str(),
                "predictor": predictor(r.predictor),
                "flags": flags,
                "region_uuid": units::uuid(&store.superblock.region_uuid),
                "origin_id": units::hex(&store.superblock.origin_id),
                "origin_sectors": r.image_sectors(store.superblock.origin_sectors),
                "op_first": r.op_first,
                "op_last": r.op_last,
                "t0": units::realtime(r.t0_realtime_ns),
                "t0_realtime_ns": r.t0_realtime_ns,
                "statistics": statistics,
                "chunks": chunks.iter().map(chunk).collect::<Vec<_>>(),
            }));
        }
        println!("snapshot {} ({}, scope {})", r.id, r.state.as_str(), r.scope.as_str());
        if r.base_id == 0 {
            println!("  base        none: the first send is full");
        } else {
            println!("  base        {}", r.base_id);
        }
        println!("  T0          {}", units::realtime(r.t0_realtime_ns));
        println!("  operations  {}..{}", r.op_first, r.op_last);
        println!("  predictor   {}", predictor(r.predictor));
        if !flags.is_empty() {
            println!("  flags       {}", flags.join(", "));
        }
        println!("  chunks      {} ({})", chunks.len(), units::blocks(r.delta_blocks));
        for (name, value) in statistics(&r) {
            let words = if name.ends_with("_ns") {
                units::ns(value)
            } else if name.contains("blocks") {
                format!("{value} ({})", units::blocks(value))
            } else {
                value.to_string()
            };
            println!("  {name:<20} {words}");
        }
        if self.chunks {
            let heading = ["START", "LENGTH", "SCORE", "CHECKSUM", "KIND"];
            let mut rows = vec![heading.map(String::from).to_vec()];
            for c in &chunks {
                rows.push(vec![
                    c.start_block.to_string(),
                    c.length_blocks.to_string(),
                    format!("{:.4}", score(c)),
                    format!("{:08x}", c.checksum),
                    kind(c).into(),
                ]);
            }
            output::table(&rows);
        }
        Ok(())
    }
}

/// The score as a probability, rounded for people and for JSON.
fn score(c: &Chunk) -> f64 {
    (f64::from(c.score) / 65535.0 * 10_000.0).round() / 10_000.0
}

fn kind(c: &Chunk) -> &'static str {
    match (c.is_zero(), c.flags & CHUNK_DISCARDED != 0) {
        (false, _) => "data",
        (true, false) => "zero",
        (true, true) => "discarded",
    }
}

fn chunk(c: &Chunk) -> Value {
    json!({
        "start": c.start_block,
        "length": c.length_blocks,
        "score": score(c),
        "checksum": format!("{:08x}", c.checksum),
        "kind": kind(c),
    })
}
