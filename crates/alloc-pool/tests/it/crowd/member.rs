//! One thread of a crowd.

use std::collections::HashSet;

use alloc_core::{DeviceAllocator, MemoryProvider, Stream};

use super::{Crowd, Lent};
use crate::support::{KIB, random};

const STEPS: u64 = 1500;
/// Sizes and habits change every so many steps.
const PHASE: u64 = 150;

/// What a thread does in one step, and how often, as long as a phase lasts.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Take,
    Give,
    Use,
    /// A block is taken, used elsewhere, and released.
    PassThrough,
    CompleteSome,
    CompleteAll,
    Trim,
    Grow,
    Flush,
    Retire,
    Capture,
    HandOn,
}

pub(super) struct Member<'a> {
    crowd: &'a Crowd,
    random: Box<dyn FnMut(u64) -> u64>,
    streams: Vec<Stream>,
    /// Its number, if its streams are its own.
    own: Option<u64>,
    living: Vec<Option<Lent>>,
    sizes: Vec<u64>,
    habits: Vec<(Deed, u64)>,
    /// How many of its streams have ended.
    ended: u64,
}

impl<'a> Member<'a> {
    pub(super) fn new(crowd: &'a Crowd, (first, streams): (u64, u64), own: Option<u64>, seed: u64) -> Self {
        let mut random: Box<dyn FnMut(u64) -> u64> = Box::new(random(seed));
        let places = 4 + random(12);
        Self {
            crowd,
            random,
            streams: (first..first + streams).map(Stream::from_raw).collect(),
            own,
            living: (0..places).map(|_| None).collect(),
            sizes: Vec::new(),
            habits: Vec::new(),
            ended: 0,
        }
    }

    pub(super) fn run(mut self) {
        for step in 0..STEPS {
            if step % PHASE == 0 {
                self.begin_phase();
            }
            self.step();
            if step % 16 == 0 {
                self.crowd.rig.provider.assert_clean();
            }
        }
        let handed_on = std::mem::take(&mut *self.crowd.handed_on.lock().unwrap());
        let left: Vec<_> = self.living.drain(..).flatten().chain(handed_on).collect();
        let _nobody_captures = self.crowd.captured.read().unwrap();
        left.into_iter().for_each(|lent| self.crowd.give(lent));
    }

    fn choose<T: Copy>(&mut self, among: &[T]) -> T {
        among[(self.random)(among.len() as u64) as usize]
    }

    fn begin_phase(&mut self) {
        let page = self.crowd.rig.provider.config().granularity;
        let most = self.choose(&[3, 6, 12, 20]);
        let kinds = 1 + (self.random)(4);
        self.sizes = (0..kinds)
            .map(|_| match (self.random)(8) {
                0 => 1 + (self.random)(64 * KIB),
                1 => 64 * KIB + (self.random)(page),
                2 => page * (1 + (self.random)(most)) + page / 2,
                _ => page * (1 + (self.random)(most)),
            })
            .collect();
        self.habits = vec![
            (Deed::Take, 20),
            (Deed::Give, 15),
            (Deed::Use, self.choose(&[0, 5, 20])),
            (Deed::PassThrough, self.choose(&[0, 10, 40])),
            (Deed::CompleteSome, self.choose(&[0, 5, 20])),
            (Deed::CompleteAll, self.choose(&[0, 1, 3])),
            (Deed::Trim, self.choose(&[0, 0, 1])),
            (Deed::Grow, self.choose(&[0, 0, 1])),
            (Deed::Flush, self.choose(&[0, 1])),
            (Deed::Retire, self.choose(&[0, 1])),
            (Deed::Capture, self.choose(&[0, 0, 1])),
            (Deed::HandOn, self.choose(&[0, 4])),
        ];
    }

    fn step(&mut self) {
        let mut at = (self.random)(self.habits.iter().map(|(_, weight)| weight).sum());
        let passes = |&&(_, weight): &&(Deed, u64)| {
            let is_past = at >= weight;
            at = at.saturating_sub(if is_past { weight } else { 0 });
            is_past
        };
        let before = self.habits.iter().take_while(passes).count();
        let deed = self.habits[before].0;
        let place = (self.random)(self.living.len() as u64) as usize;
        let index = (self.random)(self.streams.len() as u64) as usize;
        let stream = self.streams[index];
        if matches!(deed, Deed::Capture) {
            return self.begin_or_end_capture(stream);
        }
        let crowd = self.crowd;
        let captured = crowd.captured.read().unwrap();
        match deed {
            Deed::Take if self.living[place].is_none() => self.living[place] = self.take(stream),
            Deed::Give => self.living[place].take().into_iter().for_each(|lent| crowd.give(lent)),
            Deed::Use => self.living[place].iter_mut().for_each(|lent| crowd.use_on(lent, stream, &captured)),
            Deed::PassThrough => {
                if let Some(mut lent) = self.take(stream) {
                    let elsewhere = self.choose(&self.streams.clone());
                    crowd.use_on(&mut lent, elsewhere, &captured);
                    crowd.give(lent);
                }
            }
            Deed::CompleteSome => drop(crowd.rig.provider.complete_next(stream)),
            Deed::CompleteAll => crowd.rig.provider.complete_everything(),
            Deed::Trim => drop(crowd.rig.pool.trim(crowd.rig.provider.config().granularity * (self.random)(40))),
            Deed::Grow => {
                drop(crowd.rig.pool.grow_to(crowd.rig.provider.config().granularity * (self.random)(60), stream))
            }
            Deed::Flush => crowd.rig.pool.flush_thread_cache(),
            Deed::Retire if captured.is_empty() => self.retire(index),
            Deed::HandOn => {
                let mut handed_on = crowd.handed_on.lock().unwrap();
                match self.living[place].take() {
                    Some(lent) => handed_on.push(lent),
                    None => self.living[place] = handed_on.pop(),
                }
            }
            Deed::Take | Deed::Retire | Deed::Capture => {}
        }
    }

    fn take(&mut self, stream: Stream) -> Option<Lent> {
        let size = self.choose(&self.sizes.clone());
        let taken = self.crowd.take(size, stream);
        if let Some(lent) = &taken
            && (self.random)(4) > 0
        {
            self.crowd.rig.work(lent.block, stream);
        }
        taken
    }

    /// A stream of this thread's own ends, and another takes its handle, and now and then its name.
    fn retire(&mut self, index: usize) {
        let Some(own) = self.own else { return };
        let stream = self.streams[index];
        self.crowd.rig.pool.retire_stream(stream);
        let crowd = self.crowd;
        // Whoever has the name of another comes after it by allocating.
        if (self.random)(4) == 0 && crowd.take(KIB, stream).map(|lent| crowd.give(lent)).is_some() {
            return;
        }
        self.ended += 1;
        self.streams[index] = Stream::with_identity(stream.handle(), 1000 * (own + 1) + self.ended);
    }

    /// Ends all captures, or begins one, with the stream's first block before or after that.
    fn begin_or_end_capture(&mut self, stream: Stream) {
        let crowd = self.crowd;
        let provider = &crowd.rig.provider;
        let mut captured = crowd.captured.write().unwrap();
        if captured.len() == 2 || (self.random)(2) == 0 {
            for stream in captured.drain() {
                provider.set_capturing(stream, false);
                provider.drop_graph(stream);
            }
            return;
        }
        let page = provider.config().granularity;
        let is_first = (self.random)(2) == 0;
        // The pool can't know that a stream is captured which it never heard of.
        if !is_first && crowd.take(page, stream).map(|lent| crowd.give(lent)).is_none() {
            return;
        }
        provider.set_capturing(stream, true);
        captured.insert(stream);
        crowd.take(page, stream).into_iter().for_each(|lent| crowd.give(lent));
    }
}

impl Crowd {
    /// A block, unless there is no memory for it.
    fn take(&self, size: u64, home: Stream) -> Option<Lent> {
        match self.rig.try_take(size, home) {
            Ok(block) => {
                let lent = Lent { block, home, uses: Vec::new(), behind: self.behind(block) };
                self.hold(&lent);
                Some(lent)
            }
            Err(error) => {
                assert!(error.is_out_of_memory(), "{error}");
                None
            }
        }
    }

    /// Uses the block on the stream after all who used it before, if captures allow that.
    fn use_on(&self, lent: &mut Lent, stream: Stream, captured: &HashSet<Stream>) {
        let is_own = stream == lent.home && lent.uses.is_empty();
        let provider = &self.rig.provider;
        if !is_own {
            let mut involved = std::iter::once(lent.home).chain(lent.uses.iter().copied());
            if captured.contains(&stream) || involved.any(|other| captured.contains(&other)) {
                return;
            }
            for before in std::iter::once(lent.home).chain(lent.uses.iter().copied()).filter(|&other| other != stream) {
                if let Some(event) = provider.record(before).unwrap() {
                    provider.make_wait(stream, &event).unwrap();
                    provider.recycle(event);
                }
            }
            if stream != lent.home && !lent.uses.contains(&stream) {
                lent.uses.push(stream);
            }
        }
        self.rig.work(lent.block, stream);
    }

    fn give(&self, lent: Lent) {
        self.let_go(&lent);
        self.rig.give_used(lent.block, lent.home, &lent.uses);
    }
}
