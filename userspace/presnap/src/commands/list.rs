// SPDX-License-Identifier: GPL-2.0-only

//! `presnap list`: the snapshots of a device.

use anyhow::{Context, Result};
use presnap_engine::region::SnapshotRecord;
use serde::Serialize;

use crate::output;
use crate::source::Source;
use crate::units;

/// List the snapshots of a device, oldest first
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The device, or a region that is not in use
    #[arg(value_name = "DEV")]
    device: String,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Entry {
    id: u32,
    state: String,
    scope: String,
    base: u32,
    op_first: u64,
    op_last: u64,
    delta_blocks: u64,
    t0_realtime_ns: u64,
}

impl Entry {
    fn of_record(r: &SnapshotRecord) -> Self {
        Self {
            id: r.id,
            state: r.state.as_str().into(),
            scope: r.scope.as_str().into(),
            base: r.base_id,
            op_first: r.op_first,
            op_last: r.op_last,
            delta_blocks: r.delta_blocks,
            t0_realtime_ns: r.t0_realtime_ns,
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [id, state, scope, base, op_first, op_last, delta, t0, ..] = words.as_slice() else {
            return None;
        };
        Some(Self {
            id: id.parse().ok()?,
            state: (*state).into(),
            scope: (*scope).into(),
            base: base.parse().ok()?,
            op_first: op_first.parse().ok()?,
            op_last: op_last.parse().ok()?,
            delta_blocks: delta.parse().ok()?,
            t0_realtime_ns: t0.parse().ok()?,
        })
    }
}

impl Args {
    /// Lists.
    pub(crate) fn run(self) -> Result<()> {
        let source = Source::find(&self.device)?;
        let entries = match &source {
            Source::Live(dm, _) => {
                let text = dm.message(&["list"])?;
                let parse = |l| Entry::parse(l).with_context(|| format!("cannot understand: {l}"));
                text.lines()
                    .filter(|l| !["", "-"].contains(&l.trim()))
                    .map(parse)
                    .collect::<Result<Vec<_>>>()?
            }
            Source::Region(_) => source.store()?.root.iter().map(Entry::of_record).collect(),
        };
        if self.json {
            return output::json(&entries);
        }
        if entries.is_empty() {
            println!("no snapshots");
            return Ok(());
        }
        let heading = ["ID", "STATE", "SCOPE", "BASE", "TIME", "OPERATIONS", "DELTA"];
        let mut rows = vec![heading.map(String::from).to_vec()];
        for e in entries {
            rows.push(vec![
                e.id.to_string(),
                e.state,
                e.scope,
                if e.base == 0 { "-".into() } else { e.base.to_string() },
                units::realtime(e.t0_realtime_ns),
                format!("{}..{}", e.op_first, e.op_last),
                units::blocks(e.delta_blocks),
            ]);
        }
        output::table(&rows);
        Ok(())
    }
}
