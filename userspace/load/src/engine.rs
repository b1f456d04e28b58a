// SPDX-License-Identifier: GPL-2.0-only

//! The loop: io_uring with a registered file and registered buffers.

use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::{anyhow, Context, Result};
use io_uring::types::{Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{opcode, squeue, IoUring};
use presnap_blockio::{monotonic_ns, Buffer};

use crate::loads::{Op, Plan, Request};
use crate::report::Sample;

/// The only registered file.
const FILE: Fixed = Fixed(0);

/// A request in flight.
#[derive(Clone, Copy)]
struct InFlight {
    since: u64,
    request: Request,
}

/// A queue with its buffers and what it measured.
pub(crate) struct Engine {
    // Before the buffers: it must be gone before them.
    ring: IoUring,
    buffers: Vec<Buffer>,
    in_flight: Vec<InFlight>,
    samples: Vec<Sample>,
    recorded: usize,
    unrecorded: u64,
}

impl Engine {
    /// A queue of `qd` requests of at most `max_bytes` on `file`, which keeps `keep` latencies.
    pub(crate) fn new(file: &File, qd: u32, max_bytes: usize, keep: usize) -> Result<Self> {
        let entries = qd.next_power_of_two();
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(entries)
            .or_else(|_| IoUring::new(entries))
            .context("io_uring (does this kernel have it?)")?;
        ring.submitter().register_files(&[file.as_raw_fd()]).context("registering the file")?;
        let mut buffers: Vec<Buffer> = (0..qd).map(|_| Buffer::new(max_bytes)).collect();
        let mut word = 0x9e37_79b9_7f4a_7c15u64;
        for buffer in &mut buffers {
            for bytes in buffer.chunks_exact_mut(8) {
                word = word.wrapping_mul(0xd129_0d3b_3d8d_29b5).rotate_left(17) ^ 0x5851_f42d;
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
        let vectors: Vec<libc::iovec> = buffers
            .iter_mut()
            .map(|b| libc::iovec { iov_base: b.as_mut_ptr().cast(), iov_len: b.len() })
            .collect();
        // SAFETY: the buffers never move (they are on the heap) and live as long as the ring, which is dropped first.
        unsafe { ring.submitter().register_buffers(&vectors) }
            .context("registering the buffers")?;
        let nothing = Request { op: Op::Flush, offset: 0, len: 0 };
        Ok(Self {
            ring,
            buffers,
            in_flight: vec![InFlight { since: 0, request: nothing }; qd as usize],
            // Written once, so that no page is missing in the loop.
            samples: vec![Sample { at: 1, latency: 1, read: false }; keep],
            recorded: 0,
            unrecorded: 0,
        })
    }

    fn entry(&mut self, slot: usize, request: Request, counter: u64) -> Option<squeue::Entry> {
        let buffer = self.buffers.get_mut(slot)?;
        let index = slot as u16;
        let entry = match request.op {
            Op::Flush => opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build(),
            Op::Read => opcode::ReadFixed::new(FILE, buffer.as_mut_ptr(), request.len, index)
                .offset(request.offset)
                .build(),
            Op::Write | Op::WriteDurable => {
                if let Some(first) = buffer.first_chunk_mut::<8>() {
                    *first = counter.to_le_bytes();
                }
                let flags = if request.op == Op::WriteDurable { libc::RWF_DSYNC } else { 0 };
                opcode::WriteFixed::new(FILE, buffer.as_ptr(), request.len, index)
                    .offset(request.offset)
                    .rw_flags(flags)
                    .build()
            }
        };
        Some(entry.user_data(slot as u64))
    }

    /// Queues the next request of the plan in `slot`; false if there is none.
    fn issue(&mut self, plan: &mut Plan, slot: usize, since: u64) -> Result<bool> {
        let Some(request) = plan.next(slot) else { return Ok(false) };
        let Some(entry) = self.entry(slot, request, since) else { return Ok(false) };
        if let Some(f) = self.in_flight.get_mut(slot) {
            *f = InFlight { since, request };
        }
        // SAFETY: the buffer of the slot is registered, large enough for the plan, and used by this request alone.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| anyhow!("queue full"))?;
        Ok(true)
    }

    /// Runs the plan until it ends or `end` has come, and waits for what is in flight.
    ///
    /// `iops` is 0 for "as fast as it goes".
    pub(crate) fn run(&mut self, plan: &mut Plan, end: u64, iops: u64) -> Result<()> {
        let mut idle: Vec<usize> = (0..self.in_flight.len()).rev().collect();
        let mut done = Vec::with_capacity(idle.len());
        let interval = 1_000_000_000u64.checked_div(iops).map_or(0, |ns| ns.max(1));
        let mut due = monotonic_ns();
        let mut over = false;
        loop {
            let now = monotonic_ns();
            over |= now >= end;
            while let (false, Some(&slot)) = (over, idle.last()) {
                if interval != 0 && due > now {
                    break;
                }
                let since = if interval == 0 { now } else { due };
                if !self.issue(plan, slot, since)? {
                    over = true;
                    break;
                }
                idle.pop();
                due += interval;
            }
            if over && idle.len() == self.in_flight.len() {
                return Ok(());
            }
            if idle.is_empty() || interval == 0 || over {
                self.ring.submit_and_wait(1).context("io_uring")?;
            } else {
                self.wait_until(due)?;
            }
            let now = monotonic_ns();
            done.clear();
            for c in self.ring.completion() {
                done.push((c.user_data() as usize, c.result()));
            }
            for &(slot, result) in &done {
                self.complete(slot, result, now)?;
                idle.push(slot);
            }
        }
    }

    /// Submits, and waits for a completion or until `due`.
    fn wait_until(&mut self, due: u64) -> Result<()> {
        let pause = due.saturating_sub(monotonic_ns());
        let time = Timespec::new().sec(pause / 1_000_000_000).nsec((pause % 1_000_000_000) as u32);
        let args = SubmitArgs::new().timespec(&time);
        match self.ring.submitter().submit_with_args(1, &args) {
            Err(e) if e.raw_os_error() == Some(libc::ETIME) => Ok(()),
            other => other.map(|_| ()).context("io_uring"),
        }
    }

    fn complete(&mut self, slot: usize, result: i32, now: u64) -> Result<()> {
        let Some(f) = self.in_flight.get(slot) else { return Ok(()) };
        if result < 0 || result as u32 != f.request.len {
            let what = if result < 0 {
                std::io::Error::from_raw_os_error(-result).to_string()
            } else {
                format!("only {result} bytes")
            };
            return Err(anyhow!("{:?}: {what}", f.request));
        }
        if f.request.op == Op::Flush {
            return Ok(());
        }
        match self.samples.get_mut(self.recorded) {
            Some(s) => {
                let read = f.request.op == Op::Read;
                *s = Sample { at: now, latency: now - f.since, read };
                self.recorded += 1;
            }
            None => self.unrecorded += 1,
        }
        Ok(())
    }

    /// What was measured, with times from `start`.
    pub(crate) fn samples(&self, start: u64) -> Vec<Sample> {
        let recorded = self.samples.iter().take(self.recorded);
        recorded.map(|s| Sample { at: s.at.saturating_sub(start), ..*s }).collect()
    }

    /// Requests that found no room for their latency.
    pub(crate) fn unrecorded(&self) -> u64 {
        self.unrecorded
    }
}
