//! What happened to one key, and whether that can have happened.
//!
//! A [`History`] is checked as Wing and Gong do it ("Testing and verifying concurrent objects", 1993):
//! each thing that was done to the key has taken effect at one moment between its beginning and its
//! end, so there must be an order of these moments in which a [`Model`] of one key, which does one
//! thing at a time, gives the very same answers. What has no end (a process was killed, a reply was
//! lost) may have taken effect at any later moment, or never.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tower_keep::idempotency::Repeat;

/// The number of a request, which is that of its execution, too: a request is executed at most once.
pub(crate) type Id = u32;

/// What was seen of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Step {
    /// It was sent; requests with another payload are another request.
    Sent { payload: u8 },
    /// Its handler began.
    Entered { attempt: u32, fence: u64 },
    /// The handler asks to begin.
    Begins,
    /// It was told whether it may.
    Begun { ok: bool },
    /// The handler left, and its answer is to be treated so.
    Left(Fate),
    /// The client has the whole answer.
    Answered(Answer),
}

/// What is to become of a key after an execution.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Fate {
    /// This answer is kept.
    Kept(String),
    Sealed,
    Freed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// What its own handler said.
    Own(String),
    Replay(String),
    InFlight,
    Sealed,
    Unknown,
    Mismatch,
    /// 503: nothing was done.
    Refused,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// In nanoseconds, on one clock for all.
    pub(crate) at: u64,
    pub(crate) id: Id,
    pub(crate) step: Step,
}

/// Where what happens to one key is noted, by all who see it.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    clock: Clock,
    events: Arc<Mutex<Vec<Event>>>,
    /// For the process that has started this one, and may kill it at any time.
    echoes: bool,
}

#[derive(Debug, Clone, Copy)]
enum Clock {
    /// That of the runtime, which may be paused.
    Since(tokio::time::Instant),
    /// That of the machine, which its processes share.
    Machine,
}

impl Log {
    pub(crate) fn new() -> Self {
        let clock = Clock::Since(tokio::time::Instant::now());
        Self { clock, events: Arc::default(), echoes: false }
    }

    /// For histories of more than one process.
    pub(crate) fn of_machine() -> Self {
        Self { clock: Clock::Machine, events: Arc::default(), echoes: false }
    }

    /// The same, and every event is printed at once.
    pub(crate) fn echoing() -> Self {
        Self { echoes: true, ..Self::of_machine() }
    }

    pub(crate) fn note(&self, id: Id, step: Step) {
        let mut events = self.events.lock().unwrap();
        let at = match self.clock {
            Clock::Since(beginning) => beginning.elapsed(),
            Clock::Machine => SystemTime::now().duration_since(UNIX_EPOCH).unwrap(),
        };
        let event = Event { at: at.as_nanos() as u64, id, step };
        if self.echoes {
            println!("event {}", serde_json::to_string(&event).unwrap());
        }
        events.push(event);
    }

    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.events.lock().unwrap())
    }
}

/// What is promised about the key.
#[derive(Debug, Clone)]
pub(crate) struct Promise {
    pub(crate) repeat: Repeat,
    pub(crate) commit_point: bool,
    pub(crate) lease: Duration,
    /// Replies are lost, so that nobody's signs of life are sure to come through.
    pub(crate) lossy: bool,
    /// Requests whose process was killed.
    pub(crate) dead: BTreeSet<Id>,
    /// Requests whose process was not heard of for longer than a lease.
    pub(crate) silent: BTreeSet<Id>,
}

impl Promise {
    pub(crate) fn new(repeat: Repeat, lease: Duration) -> Self {
        let (dead, silent) = Default::default();
        Self { repeat, commit_point: false, lease, lossy: false, dead, silent }
    }

    /// Whether this owner may be taken for vanished.
    fn may_vanish(&self, owner: Id) -> bool {
        self.lossy || self.dead.contains(&owner) || self.silent.contains(&owner)
    }

    fn may_repeat(&self, begun: bool) -> bool {
        self.repeat == Repeat::AtLeastOnce || (self.commit_point && !begun)
    }
}

/// One key, to which one thing is done at a time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Model {
    state: State,
    /// The highest of all fences so far.
    fence: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum State {
    Absent,
    Pending(Owner),
    Unknown(Owner),
    Done { payload: u8, text: String },
    Sealed { payload: u8 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Owner {
    id: Id,
    payload: u8,
    attempt: u32,
    begun: bool,
    /// Nobody knows that it has the key, so it gives no signs of life.
    vain: bool,
    /// It has done nothing itself, and leaves behind what the one before it may have done.
    stepped_back: bool,
}

impl Owner {
    /// A first claim that nobody knows of is freed. What was taken over in vain is given back, or left
    /// as it is until its lease is over.
    fn is_left(&self, state: &State) -> bool {
        self.vain && (self.attempt > 1 || matches!(state, State::Unknown(_)))
    }
}

/// Something that takes effect at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Act {
    /// The key becomes this request's. One that never got to a handler tells no numbers.
    Claim {
        id: Id,
        payload: u8,
        numbers: Option<(u32, u64)>,
    },
    /// What was claimed in vain is free again.
    Unclaim {
        id: Id,
    },
    Begin {
        id: Id,
    },
    Finish {
        id: Id,
        fate: Fate,
    },
    Told {
        payload: u8,
        answer: Answer,
    },
}

impl Model {
    /// What may come of it. Nothing if it cannot happen now.
    fn after(&self, act: &Act, promise: &Promise) -> Vec<Model> {
        let to = |state| vec![Model { state, fence: self.fence }];
        let same = || vec![self.clone()];
        match (act, &self.state) {
            (Act::Claim { id, payload, numbers }, state) => {
                let attempt = match state {
                    State::Absent => 1,
                    State::Pending(owner) | State::Unknown(owner)
                        if owner.payload == *payload
                            && (owner.stepped_back
                                || (promise.may_vanish(owner.id) || owner.is_left(state))
                                    && promise.may_repeat(owner.begun)) =>
                    {
                        owner.attempt + 1
                    }
                    _ => return Vec::new(),
                };
                let fence = match *numbers {
                    Some((other, _)) if other != attempt => return Vec::new(),
                    Some((_, fence)) if fence <= self.fence => return Vec::new(),
                    Some((_, fence)) => fence,
                    None => self.fence,
                };
                let (id, payload, vain) = (*id, *payload, numbers.is_none());
                let stepped_back = false;
                let owner = Owner { id, payload, attempt, begun: false, vain, stepped_back };
                vec![Model { state: State::Pending(owner), fence }]
            }
            // Also where somebody has marked it as unknown: its owner knows that nothing was done.
            (Act::Unclaim { id }, State::Pending(owner) | State::Unknown(owner))
                if owner.id == *id && owner.vain =>
            {
                to(match owner.attempt {
                    1 => State::Absent,
                    // What was there before it must not be forgotten.
                    attempt => State::Unknown(Owner { attempt: attempt - 1, ..*owner }),
                })
            }
            (Act::Unclaim { .. }, _) => Vec::new(),
            (Act::Begin { id }, State::Pending(owner)) if owner.id == *id => {
                to(State::Pending(Owner { begun: true, ..*owner }))
            }
            (Act::Begin { .. }, _) => Vec::new(),
            (Act::Finish { id, fate }, State::Pending(owner) | State::Unknown(owner))
                if owner.id == *id =>
            {
                match fate {
                    Fate::Kept(text) => {
                        to(State::Done { payload: owner.payload, text: text.clone() })
                    }
                    Fate::Sealed => to(State::Sealed { payload: owner.payload }),
                    Fate::Freed if owner.attempt == 1 => to(State::Absent),
                    // As far as it is known that the one before has done nothing, the key is free.
                    Fate::Freed => {
                        let owner = Owner { stepped_back: true, ..*owner };
                        [to(State::Absent), to(State::Unknown(owner))].concat()
                    }
                }
            }
            // It is somebody else's, and stays so.
            (Act::Finish { id, .. }, _) => match promise.may_vanish(*id) {
                true => same(),
                false => Vec::new(),
            },
            (Act::Told { answer: Answer::Mismatch, payload }, state) => {
                let claimed = match state {
                    State::Absent => return Vec::new(),
                    State::Pending(owner) | State::Unknown(owner) => owner.payload,
                    State::Done { payload, .. } | State::Sealed { payload } => *payload,
                };
                if claimed == *payload { Vec::new() } else { same() }
            }
            (Act::Told { answer: Answer::InFlight, payload }, State::Pending(owner))
                if owner.payload == *payload =>
            {
                same()
            }
            // A sign of life that was under way came through after all.
            (Act::Told { answer: Answer::InFlight, payload }, State::Unknown(owner))
                if owner.payload == *payload
                    && (promise.lossy || promise.silent.contains(&owner.id)) =>
            {
                to(State::Pending(*owner))
            }
            (Act::Told { answer: Answer::Unknown, payload }, State::Unknown(owner))
                if owner.payload == *payload =>
            {
                same()
            }
            (Act::Told { answer: Answer::Unknown, payload }, State::Pending(owner))
                if owner.payload == *payload
                    && promise.may_vanish(owner.id)
                    && !promise.may_repeat(owner.begun) =>
            {
                to(State::Unknown(*owner))
            }
            (Act::Told { answer: Answer::Sealed, payload }, State::Sealed { payload: of }) => {
                if payload == of {
                    same()
                } else {
                    Vec::new()
                }
            }
            (
                Act::Told { answer: Answer::Replay(text), payload },
                State::Done { payload: of, text: kept },
            ) => {
                if (payload, text) == (of, kept) {
                    same()
                } else {
                    Vec::new()
                }
            }
            (Act::Told { .. }, _) => Vec::new(),
        }
    }
}

/// An act whose moment lies between two events; without an end it may never have come.
#[derive(Debug, Clone)]
struct Operation {
    from: usize,
    to: usize,
    must: bool,
    act: Act,
}

const NEVER: usize = usize::MAX;

impl Operation {
    /// What is likely comes first.
    fn rank(&self) -> u8 {
        match &self.act {
            _ if self.must => 0,
            Act::Finish { .. } | Act::Begin { .. } => 1,
            Act::Unclaim { .. } => 2,
            _ => 3,
        }
    }
}

/// What happened to one key, in order.
#[derive(Debug)]
pub(crate) struct History {
    events: Vec<Event>,
    promise: Promise,
}

/// What is known of one request.
#[derive(Debug, Default)]
struct Request {
    sent: Option<(usize, u8)>,
    entered: Option<(usize, u32, u64)>,
    begins: Option<usize>,
    begun: Option<(usize, bool)>,
    left: Option<(usize, Fate)>,
    answered: Option<(usize, Answer)>,
}

impl History {
    pub(crate) fn new(mut events: Vec<Event>, promise: Promise) -> Self {
        events.sort_by_key(|event| event.at);
        Self { events, promise }
    }

    pub(crate) fn executions(&self) -> usize {
        self.events.iter().filter(|event| matches!(event.step, Step::Entered { .. })).count()
    }

    pub(crate) fn answers(&self) -> impl Iterator<Item = &Answer> {
        self.events.iter().filter_map(|event| match &event.step {
            Step::Answered(answer) => Some(answer),
            _ => None,
        })
    }

    pub(crate) fn attempts(&self) -> impl Iterator<Item = u32> {
        self.events.iter().filter_map(|event| match event.step {
            Step::Entered { attempt, .. } => Some(attempt),
            _ => None,
        })
    }

    /// What those were told whose handler left after another one had taken over.
    pub(crate) fn late(&self) -> Vec<Answer> {
        let requests = self.requests();
        let late = requests.values().filter(|request| match (&request.entered, &request.left) {
            (Some((at, attempt, _)), Some((left, _))) => requests.values().any(|other| {
                other.entered.is_some_and(|(entered, later, _)| {
                    later > *attempt && (*at..*left).contains(&entered)
                })
            }),
            _ => false,
        });
        late.filter_map(|request| Some(request.answered.clone()?.1)).collect()
    }

    fn requests(&self) -> BTreeMap<Id, Request> {
        let mut requests = BTreeMap::<Id, Request>::new();
        for (at, event) in self.events.iter().enumerate() {
            let request = requests.entry(event.id).or_default();
            match event.step.clone() {
                Step::Sent { payload } => request.sent = Some((at, payload)),
                Step::Entered { attempt, fence } => request.entered = Some((at, attempt, fence)),
                Step::Begins => request.begins = Some(at),
                Step::Begun { ok } => request.begun = Some((at, ok)),
                Step::Left(fate) => request.left = Some((at, fate)),
                Step::Answered(answer) => request.answered = Some((at, answer)),
            }
        }
        requests
    }

    /// What is wrong, if anything is.
    pub(crate) fn check(&self) -> Result<(), String> {
        let requests = self.requests();
        self.check_rules(&requests)?;
        let operations = self.operations(&requests)?;
        Search { operations: &operations, promise: &self.promise, seen: HashSet::new() }.run()
    }

    #[track_caller]
    pub(crate) fn assert(&self, what: &str) {
        if let Err(wrong) = self.check() {
            panic!("{what}: {wrong}\n{self}");
        }
    }

    /// The same, but says whether the search came to an end. Where many clients have died at once, there
    /// may be too many orders in which their requests took effect.
    #[track_caller]
    pub(crate) fn assert_or_undecided(&self, what: &str) -> bool {
        match self.check() {
            Ok(()) => true,
            Err(wrong) if wrong == UNDECIDED => false,
            Err(wrong) => panic!("{what}: {wrong}\n{self}"),
        }
    }

    /// What needs no search: it says more plainly what is wrong.
    fn check_rules(&self, requests: &BTreeMap<Id, Request>) -> Result<(), String> {
        let mut runs = Vec::new();
        for (id, request) in requests {
            let Some((at, attempt, fence)) = request.entered else { continue };
            let sent = request.sent.ok_or("a handler without a request")?.0;
            let end = request.left.as_ref().map_or(NEVER, |left| left.0);
            runs.push((at, end, attempt, fence, *id, sent));
            if let (Some((_, Fate::Kept(kept))), Some((_, Answer::Own(own)))) =
                (&request.left, &request.answered)
                && kept != own
            {
                return Err(format!("request {id} was told {own:?} and its handler said {kept:?}"));
            }
        }
        runs.sort_unstable();
        for (n, &(at, _, attempt, fence, id, _)) in runs.iter().enumerate() {
            for &(_, end, before, lower, other, sent) in &runs[..n] {
                if at < end && !self.promise.may_vanish(other) {
                    return Err(format!("the handlers of {other} and {id} ran at once"));
                }
                if attempt == before + 1
                    && end > at
                    && self.events[at].at
                        < self.events[sent].at + self.promise.lease.as_nanos() as u64
                {
                    return Err(format!("{id} has taken over from {other} within its lease"));
                }
                if attempt > before && fence <= lower {
                    return Err(format!("the fence of {id} is not above that of {other}"));
                }
            }
        }
        let freed = requests.values().any(|request| matches!(request.left, Some((_, Fate::Freed))));
        if self.promise.repeat == Repeat::AtMostOnce
            && !self.promise.commit_point
            && !freed
            && runs.len() > 1
        {
            return Err(format!("{} executions, of one at most", runs.len()));
        }
        Ok(())
    }

    fn operations(&self, requests: &BTreeMap<Id, Request>) -> Result<Vec<Operation>, String> {
        let mut operations = Vec::new();
        let mut push = |from, to, must, act| operations.push(Operation { from, to, must, act });
        for (&id, request) in requests {
            let (sent, payload) = request.sent.ok_or("something without a request")?;
            let told = |answer: &Answer| Act::Told { payload, answer: answer.clone() };
            // A claim whose answer was lost may come through when nobody counts on it any more, also
            // after the same once more was answered.
            let told_of_claim = !matches!(request.answered, None | Some((_, Answer::Refused)));
            if self.promise.lossy || (request.entered.is_none() && !told_of_claim) {
                push(sent, NEVER, false, Act::Claim { id, payload, numbers: None });
                push(sent, NEVER, false, Act::Unclaim { id });
            }
            let Some((entered, attempt, fence)) = request.entered else {
                match &request.answered {
                    Some((_, Answer::Own(own))) => {
                        return Err(format!("request {id} was told {own:?} by no handler"));
                    }
                    Some((_, Answer::Refused)) | None => {}
                    Some((at, answer)) => push(sent, *at, true, told(answer)),
                }
                continue;
            };
            let numbers = Some((attempt, fence));
            push(sent, entered, true, Act::Claim { id, payload, numbers });
            let sure = !self.promise.may_vanish(id);
            match (request.begins, request.begun) {
                (Some(asked), Some((at, true))) => push(asked, at, true, Act::Begin { id }),
                (Some(asked), _) => push(asked, NEVER, false, Act::Begin { id }),
                (None, _) => {}
            }
            if let Some((left, fate)) = &request.left {
                let answered = request.answered.as_ref().map_or(NEVER, |answered| answered.0);
                let to = if sure { answered } else { NEVER };
                push(*left, to, sure, Act::Finish { id, fate: fate.clone() });
                match &request.answered {
                    Some((_, Answer::Own(_) | Answer::Refused)) | None => {}
                    // The answer of who has taken over.
                    Some((at, answer)) => push(*left, *at, true, told(answer)),
                }
            }
        }
        operations.sort_by_key(|operation| operation.from);
        Ok(operations)
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}", self.promise)?;
        for Event { at, id, step } in &self.events {
            writeln!(f, "{:>12} µs  request {id:<3} {step:?}", at / 1_000)?;
        }
        Ok(())
    }
}

/// A search for an order of all operations.
struct Search<'a> {
    operations: &'a [Operation],
    promise: &'a Promise,
    /// What was tried in vain: what was done by then, and what the key was.
    seen: HashSet<(Vec<u64>, Model)>,
}

/// How many positions are looked at before the test gives up, which is a failure.
const MOST: usize = 200_000;

const UNDECIDED: &str = "the search takes too long";

impl Search<'_> {
    fn run(mut self) -> Result<(), String> {
        let start = Model { state: State::Absent, fence: 0 };
        let mut furthest = (0, String::new());
        let mut open = vec![(vec![0; self.operations.len().div_ceil(64)], start)];
        while let Some((mut done, model)) = open.pop() {
            self.read(&mut done, &model);
            if !self.seen.insert((done.clone(), model.clone())) {
                continue;
            }
            if self.seen.len() > MOST {
                return Err(UNDECIDED.to_owned());
            }
            let end = self.end(&done);
            if end == NEVER && self.left(&done).all(|n| !self.operations[n].must) {
                return Ok(());
            }
            let count = done.iter().map(|word| word.count_ones()).sum::<u32>();
            if count >= furthest.0 {
                let next: Vec<_> = self.left(&done).map(|n| &self.operations[n]).take(6).collect();
                furthest = (count, format!("{model:?}, and then one of {next:#?}"));
            }
            let next: Vec<_> =
                self.left(&done).take_while(|&n| self.operations[n].from < end).collect();
            let mut next: Vec<_> = next
                .into_iter()
                .map(|n| (self.operations[n].rank(), n))
                .filter(|&(_, n)| !self.has_twin_before(n, &done))
                .collect();
            // The last is tried first.
            next.sort_unstable_by(|one, other| other.cmp(one));
            for (_, n) in next {
                let mut done = done.clone();
                done[n / 64] |= 1 << (n % 64);
                for model in model.after(&self.operations[n].act, self.promise) {
                    open.push((done.clone(), model));
                }
            }
        }
        Err(format!("no order explains it; the furthest comes to {}", furthest.1))
    }

    /// Of claims that nobody knows of, one is as good as another that came earlier.
    fn has_twin_before(&self, n: usize, done: &[u64]) -> bool {
        let vain = |n: usize| match self.operations[n].act {
            Act::Claim { numbers: None, payload, .. } => Some(payload),
            _ => None,
        };
        vain(n).is_some()
            && self
                .left(done)
                .take_while(|&before| before < n)
                .any(|before| vain(before) == vain(n))
    }

    fn left<'a>(&'a self, done: &'a [u64]) -> impl Iterator<Item = usize> + 'a {
        (0..self.operations.len()).filter(|n| done[n / 64] & (1 << (n % 64)) == 0)
    }

    /// Until when something has to have happened next.
    fn end(&self, done: &[u64]) -> usize {
        self.left(done).map(|n| self.operations[n].to).min().unwrap_or(NEVER)
    }

    /// What changes nothing may as well happen at once.
    fn read(&self, done: &mut [u64], model: &Model) {
        let changes_nothing = |n: &usize| {
            let Operation { act, must, .. } = &self.operations[*n];
            *must
                && matches!(act, Act::Told { .. })
                && model.after(act, self.promise) == [model.clone()]
        };
        let mut able: Vec<_> = self.left(done).filter(changes_nothing).collect();
        loop {
            let (end, before) = (self.end(done), able.len());
            able.retain(|&n| {
                let waits = self.operations[n].from >= end;
                if !waits {
                    done[n / 64] |= 1 << (n % 64);
                }
                waits
            });
            if able.len() == before {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(3);

    fn promise() -> Promise {
        Promise::new(Repeat::AtLeastOnce, LEASE)
    }

    fn sent(id: Id) -> (Id, Step) {
        (id, Step::Sent { payload: 0 })
    }

    fn entered(id: Id, attempt: u32, fence: u64) -> (Id, Step) {
        (id, Step::Entered { attempt, fence })
    }

    fn left(id: Id, text: &str) -> (Id, Step) {
        (id, Step::Left(Fate::Kept(text.to_owned())))
    }

    fn told(id: Id, answer: Answer) -> (Id, Step) {
        (id, Step::Answered(answer))
    }

    fn own(id: Id, text: &str) -> (Id, Step) {
        told(id, Answer::Own(text.to_owned()))
    }

    fn replay(id: Id, text: &str) -> (Id, Step) {
        told(id, Answer::Replay(text.to_owned()))
    }

    /// A second passes with each step.
    fn check(promise: Promise, steps: impl IntoIterator<Item = (Id, Step)>) -> Result<(), String> {
        let event = |(n, (id, step))| Event { at: n as u64 * 1_000_000_000, id, step };
        History::new(steps.into_iter().enumerate().map(event).collect(), promise).check()
    }

    /// One is executed, and 2 asks again.
    fn once() -> Vec<(Id, Step)> {
        vec![sent(1), entered(1, 1, 5), left(1, "a"), own(1, "a"), sent(2), replay(2, "a")]
    }

    #[test]
    fn what_is_promised_passes() {
        check(promise(), once()).unwrap();
        // A duplicate that came in between may be told either.
        for answer in [Answer::InFlight, Answer::Replay("a".to_owned())] {
            let mut steps = once();
            steps.insert(1, sent(3));
            steps.insert(4, told(3, answer));
            check(promise(), steps).unwrap();
        }
        let other = [(3, Step::Sent { payload: 1 }), told(3, Answer::Mismatch)];
        check(promise(), once().into_iter().chain(other)).unwrap();
        let freed = [sent(1), entered(1, 1, 5), (1, Step::Left(Fate::Freed)), own(1, "429")];
        check(promise(), freed.into_iter().chain([sent(2), entered(2, 1, 6)])).unwrap();
    }

    #[test]
    fn a_second_execution_is_found() {
        let mut steps = once();
        steps.splice(5.., [entered(2, 1, 6), left(2, "b"), own(2, "b")]);
        assert!(check(promise(), steps.clone()).is_err(), "after the answer was stored");
        steps[5] = entered(2, 2, 6);
        assert!(check(promise(), steps).is_err(), "as a second attempt");
        let both = [sent(1), sent(2), entered(1, 1, 5), entered(2, 1, 6)];
        assert!(check(promise(), both).unwrap_err().contains("at once"));
    }

    #[test]
    fn an_answer_that_nobody_gave_is_found() {
        let mut steps = once();
        steps[5] = replay(2, "b");
        assert!(check(promise(), steps).is_err(), "another one");
        assert!(check(promise(), [sent(1), own(1, "a")]).is_err(), "without a handler");
        assert!(check(promise(), [sent(1), replay(1, "a")]).is_err(), "without a first");
        let mut steps = once();
        steps[3] = own(1, "b");
        assert!(check(promise(), steps).is_err(), "to the first");
        for answer in [Answer::InFlight, Answer::Sealed, Answer::Unknown, Answer::Mismatch] {
            let mut steps = once();
            steps[5] = told(2, answer.clone());
            assert!(check(promise(), steps).is_err(), "{answer:?} after the end");
        }
        assert!(check(promise(), [sent(1), told(1, Answer::InFlight)]).is_err(), "by nobody");
        let other = [(3, Step::Sent { payload: 1 }), replay(3, "a")];
        assert!(check(promise(), once().into_iter().chain(other)).is_err(), "another request");
    }

    #[test]
    fn an_answer_before_it_was_there_is_found() {
        // The duplicate has its answer before the handler has left.
        let steps = [sent(1), entered(1, 1, 5), sent(2), replay(2, "a"), left(1, "a"), own(1, "a")];
        assert!(check(promise(), steps).is_err());
    }

    /// 1 is killed in its handler, 2 is told to wait, 3 takes over.
    fn taken_over(attempt: u32, fence: u64) -> Vec<(Id, Step)> {
        let mut steps =
            vec![sent(1), entered(1, 1, 5), sent(2), told(2, Answer::InFlight), sent(3)];
        steps.extend([entered(3, attempt, fence), left(3, "c"), own(3, "c"), sent(4)]);
        steps.push(replay(4, "c"));
        steps
    }

    #[test]
    fn a_dead_owner_is_taken_over_with_a_higher_fence() {
        let mut dead = promise();
        dead.dead.insert(1);
        check(dead.clone(), taken_over(2, 6)).unwrap();
        assert!(check(promise(), taken_over(2, 6)).is_err(), "a living one is not");
        assert!(check(dead.clone(), taken_over(1, 6)).is_err(), "the attempt is the second");
        assert!(check(dead.clone(), taken_over(2, 5)).is_err(), "the fence rises");
        let most = Promise { repeat: Repeat::AtMostOnce, ..dead.clone() };
        assert!(check(most, taken_over(2, 6)).is_err(), "at most once");
        let long = Promise { lease: 10 * LEASE, ..dead };
        assert!(check(long, taken_over(2, 6)).unwrap_err().contains("within its lease"));
    }

    #[test]
    fn a_late_owner_that_overwrites_is_found() {
        let mut silent = promise();
        silent.silent.insert(1);
        let mut steps = taken_over(2, 6);
        steps.extend([left(1, "a"), own(1, "a"), sent(5)]);
        let with = |last| check(silent.clone(), steps.iter().cloned().chain([last]));
        with(replay(5, "c")).unwrap();
        assert!(with(replay(5, "a")).is_err());
    }

    #[test]
    fn what_a_killed_process_may_have_done_is_allowed_and_nothing_else() {
        let mut dead = promise();
        dead.dead.insert(1);
        // Killed after the handler: the answer may be stored or not, and is then stored for good.
        let mut killed = vec![sent(1), entered(1, 1, 5), left(1, "a"), sent(2), sent(3), sent(4)];
        let stored = [replay(2, "a"), replay(3, "a")];
        check(dead.clone(), killed.iter().cloned().chain(stored.clone())).unwrap();
        let lost = [told(2, Answer::InFlight), entered(3, 2, 6)];
        check(dead.clone(), killed.iter().cloned().chain(lost)).unwrap();
        let both = stored.into_iter().chain([entered(4, 2, 6)]);
        assert!(check(dead.clone(), killed.iter().cloned().chain(both)).is_err());
        // Killed before the handler: nobody knows whether it had the key.
        killed.drain(1..3);
        for attempt in [1, 2] {
            check(dead.clone(), killed.iter().cloned().chain([entered(2, attempt, 6)])).unwrap();
        }
        assert!(check(dead, [sent(1), sent(2), entered(2, 3, 6)]).is_err(), "who was the second?");
    }

    #[test]
    fn unknown_is_for_ever_unless_the_owner_comes_back() {
        let mut dead = Promise::new(Repeat::AtMostOnce, LEASE);
        dead.dead.insert(1);
        let unknown = [sent(1), entered(1, 1, 5), sent(2), told(2, Answer::Unknown), sent(3)];
        let with = |promise: &Promise, more: &[(Id, Step)]| {
            check(promise.clone(), unknown.iter().chain(more).cloned())
        };
        with(&dead, &[told(3, Answer::Unknown)]).unwrap();
        assert!(with(&dead, &[told(3, Answer::InFlight)]).is_err());
        assert!(with(&dead, &[entered(3, 2, 6)]).is_err());
        assert!(with(&dead, &[replay(3, "a")]).is_err());
        let mut silent = Promise::new(Repeat::AtMostOnce, LEASE);
        silent.silent.insert(1);
        let back = [left(1, "a"), own(1, "a"), replay(3, "a")];
        with(&silent, &back).unwrap();
        assert!(with(&Promise::new(Repeat::AtMostOnce, LEASE), &[]).is_err(), "a living owner");
    }

    #[test]
    fn before_its_commit_point_an_owner_is_replaced_and_after_it_not() {
        let mut dead = Promise::new(Repeat::AtMostOnce, LEASE);
        dead.commit_point = true;
        dead.dead.insert(1);
        check(dead.clone(), taken_over(2, 6)).unwrap();
        let mut begun = taken_over(2, 6);
        begun.splice(2..2, [(1, Step::Begins), (1, Step::Begun { ok: true })]);
        assert!(check(dead.clone(), begun.clone()).is_err());
        // Whether it had begun is not known.
        begun.remove(3);
        check(dead, begun).unwrap();
    }
}
