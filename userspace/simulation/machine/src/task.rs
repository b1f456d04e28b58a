// SPDX-License-Identifier: GPL-2.0-only

//! Tasks: threads of the kernel that sleep, are woken, and take a turn.

use crate::Machine;
use std::cell::Cell;
use std::rc::Rc;

/// What a task does.
pub trait Task {
    /// Called once.
    fn begin(&mut self);

    /// How long it sleeps at most before its next turn, in microseconds.
    fn sleep_us(&self) -> u32;

    /// A turn.
    fn turn(&mut self);

    /// Called once, when it shall stop.
    fn end(&mut self);
}

/// Where a task is woken.
#[derive(Default)]
pub struct WakeUp {
    /// Woken and not running yet: since when it may run.
    due: Cell<Option<u64>>,
}

impl WakeUp {
    /// Wakes the task that sleeps here, or lets its next sleep end at once.
    pub fn wake(&self) {
        if self.due.get().is_none() {
            let machine = Machine::current();
            let late = machine.random(machine.pace.wake_ns.max(1));
            self.due.set(Some(machine.now() + late));
        }
    }
}

/// The number of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskId(usize);

pub(crate) struct Slot {
    /// `None` while it runs, and when it is gone.
    task: Option<Box<dyn Task>>,
    wake: Rc<WakeUp>,
    until: u64,
}

impl Machine {
    /// Starts a task that sleeps on `wake`.
    pub fn start_task(&self, mut task: Box<dyn Task>, wake: Rc<WakeUp>) -> TaskId {
        task.begin();
        let until = self.now() + u64::from(task.sleep_us()) * 1000;
        let mut tasks = self.tasks.borrow_mut();
        tasks.push(Slot { task: Some(task), wake, until });
        TaskId(tasks.len() - 1)
    }

    /// Stops a task and waits for its end.
    ///
    /// # Panics
    ///
    /// If it is running.
    pub fn stop_task(&self, id: TaskId) {
        let task = self.tasks.borrow_mut()[id.0].task.take();
        let mut task = task.expect("a task that runs cannot be stopped");
        task.end();
    }

    pub(crate) fn next_task(&self) -> Option<(u64, TaskId)> {
        let tasks = self.tasks.borrow();
        let asleep = tasks.iter().enumerate().filter(|(_, slot)| slot.task.is_some());
        let due = asleep.map(|(i, slot)| {
            (slot.wake.due.get().map_or(slot.until, |due| due.min(slot.until)), TaskId(i))
        });
        due.min_by_key(|&(time, _)| time)
    }

    pub(crate) fn run_task(&self, id: TaskId) {
        let taken = {
            let mut tasks = self.tasks.borrow_mut();
            let slot = &mut tasks[id.0];
            slot.wake.due.set(None);
            slot.task.take()
        };
        let Some(mut task) = taken else { return };
        task.turn();
        let until = self.now() + u64::from(task.sleep_us()) * 1000;
        let mut tasks = self.tasks.borrow_mut();
        tasks[id.0].task = Some(task);
        tasks[id.0].until = until;
    }

    /// Whether every task sleeps and nobody has woken it.
    pub fn tasks_asleep(&self) -> bool {
        let tasks = self.tasks.borrow();
        tasks.iter().all(|slot| slot.task.is_none() || slot.wake.due.get().is_none())
    }
}
