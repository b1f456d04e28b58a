// SPDX-License-Identifier: GPL-2.0-only

//! Hostile regions.

use std::collections::BTreeMap;

use anyhow::{bail, ensure, Context, Result};
use presnap_engine::region::root::ROOT_FULL_NEEDED;
use presnap_engine::region::{Scope, SnapshotState};
use presnap_engine::replication::{Action, Event, Need, Receiver};
use presnap_fuzz::hostile::{Forged, Forger};
use presnap_fuzz::recover::{recover, Recovered, BLOCK};

use crate::bases::{make, Base};
use crate::rig::{path, Rig};
use crate::Common;

#[derive(Default)]
struct Counts {
    accepted: u64,
    refused: u64,
    snapshots: u64,
    images: u64,
    sent: u64,
    not_sent: u64,
    /// How often each reason was given.
    reasons: BTreeMap<String, u64>,
}

pub(crate) fn run(args: &Common) -> Result<bool> {
    println!("seed {}", args.seed);
    let mut rig = Rig::new(args)?;
    let bases = make(&mut rig)?;
    let (mut counts, mut failed) = (Counts::default(), 0);
    for i in args.numbers() {
        let base = &bases[i as usize % bases.len()];
        // Each by itself, so that one can be made again without the others.
        let seed = args.seed.wrapping_mul(1_000_003).wrapping_add(i);
        rig.rng = fastrand::Rng::with_seed(seed);
        let forged = Forger::new(seed).region(&base.region);
        println!("{i} {}: {}", base.name, forged.what);
        if let Err(e) = one(&mut rig, base, &forged, &mut counts) {
            failed += 1;
            println!("FAILED: region {i}: {e:#}");
            ensure!(failed < 20, "that is enough");
            // What is left of it would spoil the next one.
            rig.clean().with_context(|| format!("after region {i}"))?;
        }
    }
    for (words, n) in &counts.reasons {
        println!("{n:6}  {words}");
    }
    println!(
        "{} snapshots were taken and {} images read; {} deltas were sent, {} were not for their damage",
        counts.snapshots, counts.images, counts.sent, counts.not_sent
    );
    println!(
        "{} hostile regions: {} accepted, {} refused",
        counts.accepted + counts.refused,
        counts.accepted,
        counts.refused
    );
    Ok(failed == 0)
}

/// Whether the kernel must accept a region of this content; why not.
fn verdict(rig: &Rig, bytes: &[u8]) -> Result<Recovered, String> {
    let r = recover(bytes)?;
    r.root.header.check_room().map_err(|e| e.to_string())?;
    if let Some(no) = r.index_without_room(bytes) {
        return Err(format!("index block {no} has no room"));
    }
    if r.superblock.origin_sectors != rig.sectors {
        return Err("another size".into());
    }
    Ok(r)
}

fn one(rig: &mut Rig, base: &Base, forged: &Forged, counts: &mut Counts) -> Result<()> {
    rig.restore(&base.origin)?;
    rig.write_region(&forged.bytes)?;
    let before = verdict(rig, &forged.bytes);
    let suspect = before.is_ok() && tools(rig, &forged.bytes, counts)?;
    rig.log.mark()?;
    let mapped = rig.map()?;
    let words = rig.log.words()?;
    let Some(mapped) = mapped else {
        ensure!(before.is_err(), "refused, and there is nothing wrong with it: {words:?}");
        let why = words.iter().rev().find_map(|w| w.split_once(": presnap: ")).map(|(_, why)| why);
        let why = why.with_context(|| format!("refused without a word: {words:?}"))?;
        *counts.reasons.entry(why.into()).or_default() += 1;
        counts.refused += 1;
        return rig.origin_is_right();
    };
    let before = match before {
        Ok(r) => r,
        Err(why) => bail!("accepted, although: {why}"),
    };
    counts.accepted += 1;

    let status = rig.status()?;
    ensure!(status.contains(" rw "), "status {status}");
    // What is not sealed is not shown as a snapshot.
    let sealed: Vec<u32> =
        (before.root.iter()).filter(|r| r.state == SnapshotState::Sealed).map(|r| r.id).collect();
    ensure!(listed(rig)? == sealed, "the list is {}, sealed are {sealed:?}", rig.message("list")?);
    for r in before.root.iter().filter(|r| r.state != SnapshotState::Sealed) {
        let state = rig.message(&format!("state {}", r.id))?;
        ensure!(!state.contains(" sealed"), "it is {}, and state says {state}", r.state.as_str());
        ensure!(rig.image(&mapped, r.id)?.is_none(), "image {} of what is not sealed", r.id);
    }
    for r in before.root.iter().filter(|r| r.state == SnapshotState::Sealed) {
        let image = (r.scope == Scope::Image).then(|| rig.image(&mapped, r.id)).transpose()?;
        let Some(image) = image else { continue };
        if r.image_sectors(rig.sectors) < rig.sectors {
            // It says that the origin was shorter then: there is no image as long as it is now.
            ensure!(image.is_none(), "image {} is longer than the origin was", r.id);
            continue;
        }
        let image = image.with_context(|| format!("image {} cannot be read", r.id))?;
        counts.images += 1;
        // A forger with good checksums can make an image of anything; what time did to a region is found.
        if let (false, false, Some(truth)) = (forged.mended, suspect, base.images.get(&r.id)) {
            rig.same(&format!("image {}", r.id), &image, truth)?;
        }
    }

    let mut written = rig.write(&mapped, 4)?;
    let scope = ["", "scope delta", "scope image"][rig.rng.usize(..3)];
    let (id, taken) = rig.snapshot(scope)?;
    let truth = rig.model.clone();
    let after = rig.write(&mapped, 3)?;
    if taken {
        counts.snapshots += 1;
        if scope == "scope image" {
            let image = rig.image(&mapped, id)?.context("the new image cannot be read")?;
            rig.same("the new image", &image, &truth)?;
        }
    }
    if let (Some(oldest), 0) = (sealed.first(), rig.rng.u8(..4)) {
        rig.message(&format!("delete {oldest}"))?;
    }
    rig.unmap(mapped)?;
    rig.origin_is_right()?;

    // What was accepted and written to is a good region now, as far as the new snapshot goes.
    let bytes = rig.read_region()?;
    let r = recover(&bytes[..])
        .map_err(|e| anyhow::anyhow!("closed, and not to be opened again: {e}"))?;
    if !taken {
        return Ok(());
    }
    let record = *r.root.find(id).context("the new snapshot is gone")?;
    ensure!(!r.damaged(&bytes[..]).contains(&id), "the new snapshot is damaged");
    let (chunks, _) = r.manifest(&bytes[..], &record).map_err(anyhow::Error::msg)?;
    for chunk in &chunks {
        for (block, data) in
            (chunk.start_block as usize..).zip(r.content(&bytes[..], chunk).chunks(BLOCK))
        {
            let want = &truth[block * BLOCK..][..BLOCK];
            ensure!(data == want, "block {block} of the new delta is not what the origin held");
            written.retain(|b| *b != block);
        }
    }
    ensure!(written.is_empty(), "blocks {written:?} were written and are not in the new delta");
    drop(after);
    let header = &before.root.header;
    let known = header.flags & ROOT_FULL_NEEDED == 0;
    let base_ok = record.base_id == 0 || known && record.base_id == header.base_id;
    ensure!(base_ok, "the new delta has base {}, the root says {}", record.base_id, header.base_id);
    Ok(())
}

/// The snapshots that the device lists.
fn listed(rig: &Rig) -> Result<Vec<u32>> {
    let list = rig.message("list")?;
    let mut out = Vec::new();
    for line in list.lines().filter(|l| *l != "-") {
        let words: Vec<&str> = line.split(' ').collect();
        ensure!(words.len() == 8, "list: {line}");
        if words[1] == "sealed" {
            out.push(words[0].parse().with_context(|| format!("list: {line}"))?);
        }
    }
    Ok(out)
}

/// What the tools say of the region, before the kernel sees it. Returns whether they find anything wrong.
fn tools(rig: &mut Rig, bytes: &[u8], counts: &mut Counts) -> Result<bool> {
    let region = path(&rig.region)?.to_string();
    let r = recover(bytes).map_err(anyhow::Error::msg)?;
    let damaged = r.damaged(bytes);
    let check = rig.presnap(&["check", "--data", &region])?;
    let found = !check.status.success();
    ensure!(found || damaged.is_empty(), "check does not find that {damaged:?} are damaged");
    let suspect = found || String::from_utf8_lossy(&check.stdout).contains("warning: ");
    if rig.rng.u8(..4) == 0 {
        rig.presnap(&["list", &region])?;
        for record in r.root.iter() {
            rig.presnap(&["show", &region, &record.id.to_string(), "--chunks"])?;
        }
    }
    let deltas: Vec<_> = r
        .root
        .iter()
        .filter(|s| s.state == SnapshotState::Sealed && s.base_id > 0)
        .copied()
        .collect();
    let record = match deltas.len() {
        0 => return Ok(suspect),
        n => deltas[rig.rng.usize(..n)],
    };
    if rig.rng.u8(..3) != 0 && !damaged.contains(&record.id) {
        return Ok(suspect);
    }
    let (id, base) = (record.id.to_string(), record.base_id.to_string());
    let send = rig.presnap(&["send", &region, &id, "--base", &base])?;
    if !send.status.success() {
        ensure!(
            damaged.contains(&record.id),
            "snapshot {id} is not sent: {}",
            String::from_utf8_lossy(&send.stderr)
        );
        counts.not_sent += 1;
        return Ok(suspect);
    }
    ensure!(!damaged.contains(&record.id), "snapshot {id} is damaged, and is sent");
    counts.sent += 1;
    let got = received(&send.stdout)?;
    let mut want = BTreeMap::new();
    for chunk in r.manifest(bytes, &record).map_err(anyhow::Error::msg)?.0 {
        for (block, data) in (chunk.start_block..).zip(r.content(bytes, &chunk).chunks(BLOCK)) {
            want.insert(block, data.to_vec());
        }
    }
    ensure!(got == want, "the stream of snapshot {id} carries something else than the region has");
    Ok(suspect)
}

/// The blocks that a stream carries.
fn received(mut stream: &[u8]) -> Result<BTreeMap<u64, Vec<u8>>> {
    let mut receiver = Receiver::new();
    let mut out = BTreeMap::new();
    loop {
        let (event, data) = match receiver.need() {
            Need::Bytes(n) if n <= stream.len() => {
                let (head, tail) = stream.split_at(n);
                stream = tail;
                (Event::Bytes(head), head)
            }
            _ if stream.is_empty() => (Event::End, stream),
            _ => (Event::Bytes(stream), stream),
        };
        match receiver.step(event).map_err(|e| anyhow::anyhow!("a stream that was sent: {e}"))? {
            Action::Write { start_block, .. } => {
                out.extend((start_block..).zip(data.chunks(BLOCK).map(<[u8]>::to_vec)));
            }
            Action::Zero { start_block, blocks, .. } => {
                let run = start_block..start_block + u64::from(blocks);
                out.extend(run.map(|b| (b, vec![0; BLOCK])));
            }
            Action::Done => return Ok(out),
            Action::Begin(_) | Action::Continue | Action::Complete => {}
        }
    }
}
