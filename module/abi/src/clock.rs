// SPDX-License-Identifier: GPL-2.0-only

//! Clocks, the CPU number and the checksum instruction.

use crate::bindings;

/// Returns CLOCK_MONOTONIC in nanoseconds.
pub fn monotonic_ns() -> u64 {
    // SAFETY: Reads a clock; callable from any context.
    unsafe { bindings::presnap_monotonic_ns() }
}

/// Returns CLOCK_REALTIME in nanoseconds since the epoch.
pub fn realtime_ns() -> u64 {
    // SAFETY: Reads a clock; callable from any context.
    unsafe { bindings::presnap_realtime_ns() }
}

/// Returns the number of a CPU that was ours a moment ago: good for sharding, for nothing else.
pub fn cpu_hint() -> usize {
    // SAFETY: Reads the CPU number; migration right after makes it stale, not wrong to use.
    unsafe { bindings::presnap_cpu() as usize }
}

/// Returns the CRC32C of `data` in the usual convention (initial value and result inverted), by
/// the CPU's instruction where it has one.
pub fn crc32c(data: &[u8]) -> u32 {
    // SAFETY: The pointer and length are those of a live slice.
    unsafe { bindings::presnap_crc32c(data.as_ptr().cast(), data.len()) }
}
