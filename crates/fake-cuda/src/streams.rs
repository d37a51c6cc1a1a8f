//! Streams as queues of work, events as marks in them, and capture into graphs.

use std::collections::VecDeque;

use crate::abi::{
    CAPTURED_EVENT, ILLEGAL_ADDRESS, INVALID_HANDLE, INVALID_VALUE, LAUNCH_FAILED, OK, STREAM_CAPTURE_IMPLICIT,
    STREAM_CAPTURE_INVALIDATED, STREAM_CAPTURE_UNMATCHED, STREAM_CAPTURE_UNSUPPORTED,
};
use crate::kernels;
use crate::memory::{self, Reach};
use crate::world::{THREAD, World};

const CAPTURE_ISOLATION: i32 = 905;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Key {
    Named(u64),
    Legacy(u64),
    PerThread(u64, u64),
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Copy {
        to: u64,
        from: u64,
        bytes: u64,
        /// By a call that names the contexts of both sides.
        peer: bool,
    },
    /// Bytes taken from pageable memory when the copy was submitted.
    Store {
        to: u64,
        data: Vec<u8>,
    },
    Fill {
        to: u64,
        bytes: u64,
        value: u8,
    },
    Record {
        event: u64,
        generation: u64,
    },
    WaitEvent {
        event: u64,
        generation: u64,
    },
    WaitQueue {
        key: Key,
        count: u64,
    },
    Kernel {
        function: String,
        parameters: Vec<u64>,
    },
    Free {
        address: u64,
    },
    /// Work of a graph, which runs on the device that it was captured on wherever the graph is launched.
    Within {
        context: u64,
        op: Box<Op>,
    },
}

pub(crate) struct Queue {
    pub(crate) context: u64,
    pub(crate) blocking: bool,
    pub(crate) ops: VecDeque<Op>,
    pub(crate) submitted: u64,
    pub(crate) done: u64,
    pub(crate) held: bool,
    pub(crate) capture: Option<u64>,
}

impl Queue {
    pub(crate) fn new(context: u64, blocking: bool) -> Self {
        Self { context, blocking, ops: VecDeque::new(), submitted: 0, done: 0, held: false, capture: None }
    }
}

#[derive(Default)]
pub(crate) struct Event {
    pub(crate) context: u64,
    /// How often it was recorded; who waits, waits for the last time before.
    pub(crate) recorded: u64,
    /// The times that are still to come in their streams.
    pub(crate) pending: Vec<u64>,
    /// Nobody can name it any more; those that wait for it still do.
    pub(crate) destroyed: bool,
    pub(crate) captured: Option<u64>,
}

impl Event {
    pub(crate) fn has_passed(&self, generation: u64) -> bool {
        !self.pending.contains(&generation)
    }
}

#[derive(Default)]
pub(crate) struct Capture {
    pub(crate) ops: Vec<Op>,
    pub(crate) invalid: bool,
}

impl World {
    /// The queue that a stream handle means to the calling thread.
    pub(crate) fn queue(&mut self, handle: u64) -> Result<Key, i32> {
        self.about(handle);
        let key = match handle {
            0 | 1 => Key::Legacy(self.current()?.0),
            2 => Key::PerThread(self.current()?.0, THREAD.with(|number| *number)),
            _ => Key::Named(handle),
        };
        match key {
            Key::Named(_) if !self.queues.contains_key(&key) => {
                self.violation(format!("stream {handle:#x} does not exist"));
                return Err(INVALID_HANDLE);
            }
            Key::Named(_) => {}
            Key::Legacy(context) | Key::PerThread(context, _) => {
                self.queues.entry(key).or_insert_with(|| Queue::new(context, true));
            }
        }
        let device = self.contexts.get(&self.queues[&key].context).map(|context| context.device);
        match device.map(|device| self.devices[device].poisoned) {
            Some(OK) => Ok(key),
            Some(code) => Err(code),
            None => Err(INVALID_HANDLE),
        }
    }

    pub(crate) fn context_of(&self, key: Key) -> u64 {
        self.queues.get(&key).map_or(0, |queue| queue.context)
    }

    /// Refuses a call on the legacy stream while a stream that it waits for captures, as the driver does, which gives up
    /// the capture as well.
    pub(crate) fn may_use(&mut self, key: Key, call: &str) -> Result<(), i32> {
        if self.is_implicit(key) {
            self.violation(format!("{call} on the legacy stream while a blocking stream captures"));
            self.invalidate_captures();
            return Err(STREAM_CAPTURE_IMPLICIT);
        }
        Ok(())
    }

    /// Whether this is the legacy stream, and a stream that it waits for captures.
    pub(crate) fn is_implicit(&self, key: Key) -> bool {
        let context = self.context_of(key);
        let captures = |queue: &Queue| queue.blocking && queue.context == context && queue.capture.is_some();
        matches!(key, Key::Legacy(_)) && self.queues.values().any(captures)
    }

    pub(crate) fn submit(&mut self, key: Key, op: Op) -> Result<(), i32> {
        self.may_use(key, "work")?;
        let Some(queue) = self.queues.get(&key) else {
            return Err(INVALID_HANDLE);
        };
        let context = queue.context;
        if let Some(capture) = queue.capture {
            let capture = self.captures.get_mut(&capture).ok_or(STREAM_CAPTURE_UNMATCHED)?;
            if capture.invalid {
                return Err(STREAM_CAPTURE_INVALIDATED);
            }
            capture.ops.push(Op::Within { context, op: Box::new(op) });
            return Ok(());
        }
        let blocking = queue.blocking;
        let mut first: Vec<Op> = Vec::new();
        match key {
            Key::Legacy(_) => {
                for (other, queue) in &self.queues {
                    if *other != key && queue.context == context && queue.blocking {
                        first.push(Op::WaitQueue { key: *other, count: queue.submitted });
                    }
                }
            }
            _ if blocking => {
                let legacy = Key::Legacy(context);
                first.extend(
                    self.queues.get(&legacy).map(|queue| Op::WaitQueue { key: legacy, count: queue.submitted }),
                );
            }
            _ => {}
        }
        if let Some(queue) = self.queues.get_mut(&key) {
            for op in first.into_iter().chain([op]) {
                queue.submitted += 1;
                queue.ops.push_back(op);
            }
        }
        Ok(())
    }

    pub(crate) fn record(&mut self, event: u64, key: Key) -> Result<(), i32> {
        self.may_use(key, "cuEventRecord")?;
        let context = self.context_of(key);
        let capture = self.queues.get(&key).and_then(|queue| queue.capture);
        let Some(found) = self.events.get_mut(&event).filter(|event| !event.destroyed) else {
            self.violation(format!("event {event:#x} does not exist"));
            return Err(INVALID_HANDLE);
        };
        if found.context != context {
            return Err(INVALID_HANDLE);
        }
        found.captured = capture;
        if capture.is_some() {
            return Ok(());
        }
        found.recorded += 1;
        let generation = found.recorded;
        found.pending.push(generation);
        self.submit(key, Op::Record { event, generation })
    }

    pub(crate) fn wait(&mut self, key: Key, event: u64) -> Result<(), i32> {
        self.may_use(key, "cuStreamWaitEvent")?;
        let Some(found) = self.events.get(&event).filter(|event| !event.destroyed) else {
            self.violation(format!("event {event:#x} does not exist"));
            return Err(INVALID_HANDLE);
        };
        let (generation, captured) = (found.recorded, found.captured);
        match (captured, self.queues.get(&key).and_then(|queue| queue.capture)) {
            (Some(_), None) if matches!(key, Key::Legacy(_)) => {
                self.violation("the legacy stream waits for work that is captured".to_owned());
                self.invalidate_captures();
                Err(STREAM_CAPTURE_IMPLICIT)
            }
            (Some(capture), None) => {
                if let Some(queue) = self.queues.get_mut(&key) {
                    queue.capture = Some(capture);
                }
                Ok(())
            }
            (Some(of_event), Some(of_stream)) if of_event == of_stream => Ok(()),
            (None, None) if generation == 0 => Ok(()),
            (None, None) => self.submit(key, Op::WaitEvent { event, generation }),
            _ => {
                self.violation("a captured stream waits for work outside of its capture".to_owned());
                self.invalidate_captures();
                Err(CAPTURE_ISOLATION)
            }
        }
    }

    pub(crate) fn destroy_event(&mut self, event: u64) -> Result<(), i32> {
        match self.events.get_mut(&event) {
            Some(found) if !found.destroyed => {
                found.destroyed = true;
                if found.pending.is_empty() {
                    self.events.remove(&event);
                }
                Ok(())
            }
            _ => {
                self.violation(format!("cuEventDestroy of {event:#x}, which does not exist"));
                Err(INVALID_HANDLE)
            }
        }
    }

    pub(crate) fn query_event(&mut self, event: u64) -> Result<bool, i32> {
        self.about(event);
        let Some(found) = self.events.get(&event).filter(|event| !event.destroyed) else {
            self.violation(format!("event {event:#x} does not exist"));
            return Err(INVALID_HANDLE);
        };
        if found.captured.is_some() {
            return Err(CAPTURED_EVENT);
        }
        let device = self.contexts.get(&found.context).map(|context| self.devices[context.device].poisoned);
        match device {
            Some(OK) => Ok(found.has_passed(found.recorded)),
            Some(code) => Err(code),
            None => Err(INVALID_HANDLE),
        }
    }

    pub(crate) fn destroy_queue(&mut self, handle: u64) -> Result<(), i32> {
        let Some(queue) = self.queues.remove(&Key::Named(handle)) else {
            self.violation(format!("cuStreamDestroy of {handle:#x}, which does not exist"));
            return Err(INVALID_HANDLE);
        };
        if queue.capture.is_some() {
            self.violation("cuStreamDestroy of a stream that captures".to_owned());
            return Err(STREAM_CAPTURE_UNSUPPORTED);
        }
        if !queue.ops.is_empty() {
            let ghost = Key::Named(self.fresh());
            for other in self.queues.values_mut() {
                for op in &mut other.ops {
                    if let Op::WaitQueue { key, .. } = op
                        && *key == Key::Named(handle)
                    {
                        *key = ghost;
                    }
                }
            }
            self.queues.insert(ghost, queue);
        }
        self.spare_streams.push(handle);
        Ok(())
    }

    pub(crate) fn begin_capture(&mut self, key: Key) -> Result<(), i32> {
        if matches!(key, Key::Legacy(_)) {
            return Err(STREAM_CAPTURE_UNSUPPORTED);
        }
        let id = self.fresh();
        let queue = self.queues.get_mut(&key).ok_or(INVALID_HANDLE)?;
        if queue.capture.is_some() {
            return Err(INVALID_VALUE);
        }
        queue.capture = Some(id);
        self.captures.insert(id, Capture::default());
        self.in_capture = true;
        Ok(())
    }

    pub(crate) fn end_capture(&mut self, key: Key) -> Result<u64, i32> {
        let id = self.queues.get(&key).and_then(|queue| queue.capture).ok_or(INVALID_VALUE)?;
        for queue in self.queues.values_mut().filter(|queue| queue.capture == Some(id)) {
            queue.capture = None;
        }
        let capture = self.captures.remove(&id).ok_or(STREAM_CAPTURE_UNMATCHED)?;
        self.in_capture = !self.captures.is_empty();
        if capture.invalid {
            return Err(STREAM_CAPTURE_INVALIDATED);
        }
        let graph = self.fresh();
        self.graphs.insert(graph, capture.ops);
        Ok(graph)
    }

    pub(crate) fn invalidate_captures(&mut self) {
        for capture in self.captures.values_mut() {
            capture.invalid = true;
        }
    }

    /// Lets work run as far as the mode says: all that is not held back, or a little at random.
    pub(crate) fn run_some(&mut self) {
        if self.lazy == 0 {
            while self.run_any() {}
        } else {
            for _ in 0..self.random() % 3 {
                self.run_random();
            }
        }
    }

    fn random(&mut self) -> u64 {
        self.lazy ^= self.lazy << 13;
        self.lazy ^= self.lazy >> 7;
        self.lazy ^= self.lazy << 17;
        self.lazy
    }

    fn run_any(&mut self) -> bool {
        let busy: Vec<Key> =
            self.queues.iter().filter(|(_, queue)| !queue.ops.is_empty() && !queue.held).map(|(key, _)| *key).collect();
        let mut progressed = false;
        for key in busy {
            while self.step(key) {
                progressed = true;
            }
        }
        progressed
    }

    fn run_random(&mut self) -> bool {
        let busy: Vec<Key> =
            self.queues.iter().filter(|(_, queue)| !queue.ops.is_empty() && !queue.held).map(|(key, _)| *key).collect();
        if busy.is_empty() {
            return false;
        }
        let start = self.random() as usize % busy.len();
        (0..busy.len()).any(|offset| self.step(busy[(start + offset) % busy.len()]))
    }

    /// Lets time pass until `reached`: holds end when nothing else can go on.
    pub(crate) fn run_until(&mut self, reached: impl Fn(&Self) -> bool) {
        while !reached(self) {
            let progressed = if self.lazy == 0 { self.run_any() } else { self.run_random() };
            if progressed {
                continue;
            }
            let held = self.queues.values().any(|queue| queue.held);
            if !held {
                self.violation("work waits for what never comes".to_owned());
                return;
            }
            for queue in self.queues.values_mut() {
                queue.held = false;
            }
        }
    }

    pub(crate) fn finish_all(&mut self) {
        self.run_until(|world| world.queues.values().all(|queue| queue.ops.is_empty()));
    }

    /// Lets time pass until all work of a context is done. That of others goes on as it pleases.
    pub(crate) fn finish_context(&mut self, context: u64) {
        self.run_until(|world| world.queues.values().all(|queue| queue.context != context || queue.ops.is_empty()));
    }

    /// The same for all contexts of a device.
    pub(crate) fn finish_device(&mut self, device: usize) {
        let contexts = self.contexts.iter().filter(|(_, context)| context.device == device);
        for context in contexts.map(|(context, _)| *context).collect::<Vec<_>>() {
            self.finish_context(context);
        }
    }

    pub(crate) fn finish_queue(&mut self, key: Key) {
        let count = self.queues.get(&key).map_or(0, |queue| queue.submitted);
        self.run_until(|world| world.queues.get(&key).is_none_or(|queue| queue.done >= count));
    }

    /// Runs the first piece of work of a queue, if it can.
    fn step(&mut self, key: Key) -> bool {
        let Some(queue) = self.queues.get(&key).filter(|queue| !queue.held) else {
            return false;
        };
        let context = queue.context;
        let Some(op) = queue.ops.front() else {
            return false;
        };
        let ready = match op {
            Op::WaitEvent { event, generation } => {
                self.events.get(event).is_none_or(|event| event.has_passed(*generation))
            }
            Op::WaitQueue { key, count } => self.queues.get(key).is_none_or(|queue| queue.done >= *count),
            _ => true,
        };
        if !ready {
            return false;
        }
        let Some(queue) = self.queues.get_mut(&key) else {
            return false;
        };
        let Some(op) = queue.ops.pop_front() else {
            return false;
        };
        queue.done += 1;
        if matches!(&op, Op::Kernel { function, .. } if function == "trap") {
            self.poison(context, LAUNCH_FAILED);
        } else if self.execute(context, op).is_err() {
            self.violation(format!("work on {key:?} touched memory that is not there"));
            self.poison(context, ILLEGAL_ADDRESS);
        }
        true
    }

    fn poison(&mut self, context: u64, code: i32) {
        let Some(broken) = self.contexts.get(&context).map(|context| context.device) else { return };
        for (index, device) in self.devices.iter_mut().enumerate() {
            if index == broken || self.breaks_all {
                device.poisoned = code;
            }
        }
    }

    fn execute(&mut self, context: u64, op: Op) -> Result<(), i32> {
        let usable = |world: &Self, address, bytes| match world.reach(context, address, bytes) {
            Reach::Usable => Ok(()),
            _ => Err(ILLEGAL_ADDRESS),
        };
        match op {
            Op::Copy { to, from, bytes, peer } => {
                for address in [to, from] {
                    // Mapped memory is the stream's device's to reach, or else the contexts have to be named.
                    let foreign = self.is_reserved(address) && self.reach(context, address, bytes) == Reach::Fault;
                    if self.reach_any(address, bytes) == Reach::Fault || foreign && !peer {
                        return Err(ILLEGAL_ADDRESS);
                    }
                }
                memory::copy(to, from, bytes);
            }
            Op::Store { to, data } => {
                if self.reach_any(to, data.len() as u64) == Reach::Fault {
                    return Err(ILLEGAL_ADDRESS);
                }
                memory::copy(to, data.as_ptr() as u64, data.len() as u64);
            }
            Op::Fill { to, bytes, value } => {
                usable(self, to, bytes)?;
                memory::fill(to, bytes, value);
            }
            Op::Record { event, generation } => {
                if let Some(found) = self.events.get_mut(&event) {
                    found.pending.retain(|pending| *pending != generation);
                    if found.destroyed && found.pending.is_empty() {
                        self.events.remove(&event);
                    }
                }
            }
            Op::WaitEvent { .. } | Op::WaitQueue { .. } => {}
            Op::Kernel { function, parameters } => {
                for (address, bytes) in kernels::touched(&function, &parameters) {
                    usable(self, address, bytes)?;
                }
                kernels::run(&function, &parameters);
            }
            Op::Free { address } => self.deallocate(address),
            Op::Within { context, op } => self.execute(context, *op)?,
        }
        Ok(())
    }

    /// What a range is to any context: copies between devices go without peer access too.
    pub(crate) fn reach_any(&self, address: u64, bytes: u64) -> Reach {
        let mut best = Reach::Fault;
        for context in self.contexts.keys() {
            match self.reach(*context, address, bytes) {
                Reach::Fault => {}
                other => best = other,
            }
        }
        best
    }
}
