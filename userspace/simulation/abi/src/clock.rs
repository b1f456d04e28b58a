// SPDX-License-Identifier: GPL-2.0-only

//! Clocks, the CPU number and the checksum.

use presnap_machine::Machine;

/// The monotonic clock, nanoseconds. It moves by being read.
pub fn monotonic_ns() -> u64 {
    let machine = Machine::current();
    machine.preempt();
    machine.now()
}

/// The real-time clock, nanoseconds since 1970.
pub fn realtime_ns() -> u64 {
    let machine = Machine::current();
    machine.preempt();
    machine.realtime()
}

/// The number of some CPU.
pub fn cpu_hint() -> usize {
    Machine::current().random(4) as usize
}

/// CRC32C.
pub fn crc32c(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
}
