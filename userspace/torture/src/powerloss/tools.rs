// SPDX-License-Identifier: GPL-2.0-only

//! The programs that are run, and the stream of a delta.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, ensure, Context, Result};
use presnap_blockio::dm::Control;
use presnap_engine::replication::{Action, Event, Need, Receiver};

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;
/// Longest time that anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a program that has to succeed; returns what it printed.
pub(crate) fn tool(program: &str, args: &[&str]) -> Result<String> {
    Ok(String::from_utf8_lossy(&tool_bytes(program, args)?).into_owned())
}

fn tool_bytes(program: &str, args: &[&str]) -> Result<Vec<u8>> {
    let mut command = Command::new(program);
    let out =
        command.args(args).stdin(Stdio::null()).output().with_context(|| program.to_string())?;
    if !out.status.success() {
        bail!(
            "{program} {}: {}: {}{}",
            args.join(" "),
            out.status,
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
    }
    Ok(out.stdout)
}

/// Removes a mapped device; whoever looks at new devices may have it open for a moment.
pub(crate) fn remove(dm: &Control, name: &str) -> Result<()> {
    let begin = Instant::now();
    while let Err(e) = dm.remove(name) {
        if begin.elapsed() > PATIENCE {
            return Err(e).with_context(|| format!("removing {name}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Reads a device from its beginning.
pub(crate) fn read(file: &File, out: &mut [u8]) -> Result<()> {
    for (i, piece) in out.chunks_mut(1 << 20).enumerate() {
        let at = (i as u64) << 20;
        file.read_exact_at(piece, at).with_context(|| format!("reading at {at}"))?;
    }
    Ok(())
}

/// The first block that differs.
pub(crate) fn differs(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b {
        return None;
    }
    let both = || a.chunks(BLOCK).zip(b.chunks(BLOCK));
    Some(both().position(|(a, b)| a != b).unwrap_or_else(|| both().count()))
}

/// Sends a snapshot as a delta, and applies that to what its base was. Returns how many blocks it had.
pub(crate) fn apply_delta(device: &str, id: u32, base: u32, replica: &mut [u8]) -> Result<usize> {
    let args = ["send", device, &id.to_string(), "--base", &base.to_string()];
    let stream = tool_bytes("presnap", &args)?;
    let (mut input, mut receiver, mut carried) = (&stream[..], Receiver::new(), 0);
    let range = |start: u64, blocks: u32| {
        start as usize * BLOCK..(start as usize + blocks as usize) * BLOCK
    };
    loop {
        let n = match receiver.need() {
            Need::Bytes(n) => n,
            Need::End => 1,
        };
        let mut bytes = vec![0; n.min(input.len())];
        input.read_exact(&mut bytes)?;
        let event = if bytes.len() < n { Event::End } else { Event::Bytes(&bytes) };
        match receiver.step(event).map_err(|e| anyhow!("the stream: {e}"))? {
            Action::Begin(h) => ensure!(
                (h.snapshot, h.base) == (id, base) && !h.is_full(),
                "a stream of {} to {}",
                h.snapshot,
                h.base
            ),
            Action::Write { start_block, blocks } => {
                let to = replica.get_mut(range(start_block, blocks)).context("beyond the end")?;
                to.copy_from_slice(&bytes);
                carried += blocks as usize;
            }
            Action::Zero { start_block, blocks, .. } => {
                replica.get_mut(range(start_block, blocks)).context("beyond the end")?.fill(0);
                carried += blocks as usize;
            }
            Action::Done => return Ok(carried),
            Action::Continue | Action::Complete => {}
        }
    }
}
