//! The rule of fences, searched exhaustively.
//!
//! A small world (two keys, two tags, one record, slow handlers, a session that is saved, purges, a
//! clock that also steps back, eviction, failover) is explored breadth first, every order of every
//! step. The rule in it is [`Record`]: each record that is reached is built by its own methods, and
//! must answer every fence as the few lines of [`Plane`] do, which the search then reads. Each test
//! with a [`Mutant`] takes one clause away and asserts that the search finds where it is missed.
//!
//! Versions are unique here. In a backend two entries of one key have one version only if its clock
//! was set back to the very microsecond.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry as MapEntry},
    hash::{BuildHasherDefault, Hasher},
};

use tower_keep::storage::{Fence, Invalidation, Record, TagDigest};

const TAGS: [TagDigest; 2] = [[1; 16], [2; 16]];
const A: u8 = 1;
const B: u8 = 2;

/// One clause of the rule left out, or one assumption about the backend broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    /// The rule as it is.
    None,
    /// A forgotten tag does not raise the floor.
    NoFloor,
    /// A put that finds no record makes one, under the generation of its fence.
    PutRecreates,
    /// A stamp is the clock, without "last plus one".
    StampIsClock,
    /// A fence above the record's last stamp is as good as any.
    FutureAccepted,
    /// A fence from before the connection was replaced is as good as any.
    EpochIgnored,
    /// A `Version` put gives the entry the fence of now.
    SaveRenewsFence,
    /// The same, and a dead entry of that version counts as there.
    SaveRevives,
    /// A request joins a flight whatever fence its own lookup saw.
    JoinAnyFlight,
    /// Of two connections one is replaced and the other goes on asking the demoted server.
    LaneLeftBehind,
    /// A restore takes the record back to an earlier state and not the entries.
    RecordRestoredAlone,
    /// A restore takes the entries back and not the record.
    EntriesRestoredAlone,
}

/// How much of everything may happen.
#[derive(Debug, Clone, Copy)]
struct World {
    mutant: Mutant,
    /// How many of the two keys are used, and the tags of each.
    used: u8,
    keys: [u8; 2],
    flights: usize,
    ticks: u8,
    life: u8,
    purges: u8,
    soft: bool,
    saves: bool,
    backs: u8,
    losses: u8,
    failovers: u8,
    /// The client goes on over the same connection, as behind a proxy.
    unnoticed: bool,
}

/// A world beyond this is a mistake of the test.
const MOST_STATES: usize = 5_000_000;

const CALM: World = World {
    mutant: Mutant::None,
    used: 2,
    keys: [A, A | B],
    flights: 2,
    ticks: 3,
    life: 1,
    purges: 2,
    soft: false,
    saves: false,
    backs: 0,
    losses: 0,
    failovers: 0,
    unnoticed: false,
};

/// What [`Record`] remembers, without its collections. A stamp of zero is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Plane {
    generation: u8,
    last: u8,
    floor: u8,
    longest: u8,
    hard: [u8; 2],
    soft: [u8; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Seen {
    generation: u8,
    stamp: u8,
    epoch: u8,
}

impl Plane {
    fn fence(&self, epoch: u8) -> Seen {
        Seen { generation: self.generation, stamp: self.last, epoch }
    }

    fn admits(&self, fence: Seen, tags: u8, mutant: Mutant) -> bool {
        fence.generation == self.generation
            && self.floor <= fence.stamp
            && (fence.stamp <= self.last || mutant == Mutant::FutureAccepted)
            && of(tags).all(|tag| self.hard[tag] <= fence.stamp)
    }

    fn is_stale(&self, fence: Seen, tags: u8) -> bool {
        of(tags).any(|tag| self.soft[tag] > fence.stamp)
    }

    fn invalidate(&mut self, now: u8, tags: u8, soft: bool, mutant: Mutant) {
        self.last = if mutant == Mutant::StampIsClock { now } else { now.max(self.last + 1) };
        for tag in of(tags) {
            if soft { self.soft[tag] = self.last } else { self.hard[tag] = self.last }
        }
        for tag in 0..2 {
            let newest = self.hard[tag].max(self.soft[tag]);
            if newest > 0 && newest + self.longest < now {
                (self.hard[tag], self.soft[tag]) = (0, 0);
                if mutant != Mutant::NoFloor {
                    self.floor = self.floor.max(newest);
                }
            }
        }
    }
}

fn of(tags: u8) -> impl Iterator<Item = usize> {
    (0..2).filter(move |tag| tags & (1 << tag) != 0)
}

fn digests(tags: u8) -> Vec<TagDigest> {
    of(tags).map(|tag| TAGS[tag]).collect()
}

/// What is done to a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Op {
    KeepFor(u8),
    Invalidate { now: u8, tags: u8, soft: bool },
}

/// A handler between its lookup and its put. `read` is how many purges had been acknowledged when
/// it began to read what it makes its answer of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Flight {
    key: u8,
    fence: Seen,
    read: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Entry {
    fence: Seen,
    read: u8,
    deadline: u8,
    /// After how many failovers it was first put.
    stored_in: u8,
}

/// The last purges, as numbers in the order in which they were acknowledged: by tag, and (last) of
/// everything.
type Purged = [u8; 3];

/// A server: what failover takes back to an earlier state as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Server {
    plane: Option<Plane>,
    hard: Purged,
    soft: Purged,
    entries: [Option<Entry>; 2],
    /// The entry that a session's handler has read and will save is there unchanged.
    unsaved: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct State {
    clock: u8,
    acknowledged: u8,
    failovers: u8,
    generations: u8,
    losses: u8,
    backs: u8,
    /// Like `Server::hard`, but what failover loses stays.
    ever: Purged,
    main: Server,
    replica: Server,
    flights: [Option<Flight>; 2],
    saver: Option<u8>,
    left_behind: Option<Seen>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Start,
    Tick,
    Back(u8),
    Lookup(u8),
    LookupLeftBehind(u8),
    Put(usize),
    ReadSession(u8),
    SaveSession,
    Purge(u8),
    PurgeSoftly(u8),
    PurgeAll,
    LoseRecord,
    LoseEntry(u8),
    Replicate,
    Failover,
}

#[derive(Debug, Default)]
struct Found {
    states: usize,
    served: usize,
    refused: usize,
    violation: Option<String>,
}

/// The states are all small numbers, and hashing them is most of the work of an unoptimised build.
#[derive(Debug, Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u8(*byte);
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.write_u64(n.into());
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(5) ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }

    fn write_isize(&mut self, n: isize) {
        self.write_u64(n as u64);
    }
}

type Map<K, V> = HashMap<K, V, BuildHasherDefault<Mix>>;

struct Search {
    world: World,
    records: Map<Plane, Record>,
    ops: Map<(Plane, Op), Plane>,
    found: Found,
}

impl Search {
    fn run(world: World) -> Found {
        let mut search =
            Self { world, records: Map::default(), ops: Map::default(), found: Found::default() };
        let mut numbers = Map::from_iter([(State::default(), 0)]);
        let mut came_from = vec![(0, Action::Start)];
        let mut queue = VecDeque::from([(0, State::default())]);
        let mut next = Vec::new();
        while let Some((number, state)) = queue.pop_front() {
            if let Some(what) = search.violation(&state) {
                search.found.violation =
                    Some(format!("{what}\n  after {:?}\n  in {state:?}", path(&came_from, number)));
                break;
            }
            search.successors(&state, &mut next);
            assert!(came_from.len() < MOST_STATES, "the world is too large: {world:?}");
            for (action, state) in next.drain(..) {
                if let MapEntry::Vacant(new) = numbers.entry(state) {
                    new.insert(came_from.len());
                    queue.push_back((came_from.len(), state));
                    came_from.push((number, action));
                }
            }
        }
        search.found.states = came_from.len();
        println!(
            "{:?}: {} states, {} records, {} served, {} refused",
            world.mutant,
            search.found.states,
            search.records.len(),
            search.found.served,
            search.found.refused
        );
        search.found
    }

    /// A new record; the real one beside it.
    fn create(&mut self, state: &mut State) -> Plane {
        state.generations += 1;
        let plane = Plane { generation: state.generations, ..Plane::default() };
        if self.world.mutant == Mutant::None {
            let record = Record::new(plane.generation.into()).with_patience(0);
            agree(&record, &plane);
            self.records.insert(plane, record);
        }
        plane
    }

    fn apply(&mut self, plane: Plane, op: Op) -> Plane {
        if let Some(after) = self.ops.get(&(plane, op)) {
            return *after;
        }
        let mut after = plane;
        match op {
            Op::KeepFor(life) => after.longest = after.longest.max(life),
            Op::Invalidate { now, tags, soft } => {
                after.invalidate(now, tags, soft, self.world.mutant);
            }
        }
        if self.world.mutant == Mutant::None {
            let mut record = self.records[&plane].clone();
            match op {
                Op::KeepFor(life) => record.keep_for(life.into()),
                Op::Invalidate { now, tags, soft } => {
                    let how = if soft { Invalidation::Soft } else { Invalidation::Hard };
                    record.invalidate(now.into(), &digests(tags), how);
                }
            }
            agree(&record, &after);
            self.records.insert(after, record);
        }
        self.ops.insert((plane, op), after);
        after
    }

    fn is_live(&self, state: &State, key: usize) -> Option<Entry> {
        let entry = state.main.entries[key]?;
        let plane = state.main.plane?;
        let admitted = plane.admits(entry.fence, self.world.keys[key], self.world.mutant);
        (admitted && state.clock < entry.deadline).then_some(entry)
    }

    fn epoch(&self, state: &State) -> u8 {
        if self.world.unnoticed { 0 } else { state.failovers }
    }

    /// What must never be.
    fn violation(&mut self, state: &State) -> Option<String> {
        for key in 0..2 {
            let tags = self.world.keys[key];
            let Some(entry) = self.is_live(state, key) else { continue };
            self.found.served += 1;
            let plane = state.main.plane.unwrap_or_default();
            if self.world.unnoticed && entry.fence.stamp <= plane.last {
                // The record has caught up with the stamps that were lost: nothing is promised.
                continue;
            }
            if entry.read < latest(&state.main.hard, tags) {
                return Some(format!(
                    "key {key} is served, though it was purged after it was read"
                ));
            }
            if entry.stored_in == state.failovers
                && !self.world.unnoticed
                && entry.read < latest(&state.ever, tags)
            {
                return Some(format!("key {key} was stored after a purge that failover lost"));
            }
            let softly = of(tags).map(|tag| state.main.soft[tag]).max().unwrap_or(0);
            if entry.read < softly && !plane.is_stale(entry.fence, tags) {
                return Some(format!("key {key} is served as fresh after a soft purge"));
            }
        }
        let plane = state.main.plane.filter(|_| !self.world.unnoticed)?;
        for flight in state.flights.iter().flatten() {
            let mut fence = plane.fence(self.epoch(state));
            if self.world.mutant == Mutant::EpochIgnored {
                fence.epoch = flight.fence.epoch;
            }
            let joins = fence == flight.fence || self.world.mutant == Mutant::JoinAnyFlight;
            let tags = self.world.keys[usize::from(flight.key)];
            if joins && flight.read < latest(&state.main.hard, tags) {
                return Some("a request joins a flight that began before a purge".into());
            }
        }
        None
    }

    fn successors(&mut self, state: &State, next: &mut Vec<(Action, State)>) {
        let world = self.world;
        if state.clock < world.ticks {
            next.push((Action::Tick, State { clock: state.clock + 1, ..*state }));
        }
        if state.backs < world.backs {
            for clock in 0..state.clock {
                next.push((Action::Back(clock), State { clock, backs: state.backs + 1, ..*state }));
            }
        }
        if state.flights[..world.flights].iter().any(Option::is_none) {
            for key in 0..world.used {
                let mut after = *state;
                let plane = state.main.plane.unwrap_or_else(|| self.create(&mut after));
                after.main.plane = Some(plane);
                let fence = plane.fence(self.epoch(state));
                after.depart(Flight { key, fence, read: state.acknowledged });
                next.push((Action::Lookup(key), after));
                if let Some(fence) = state.left_behind {
                    let mut after = *state;
                    let fence = Seen { epoch: self.epoch(state), ..fence };
                    after.depart(Flight { key, fence, read: state.acknowledged });
                    next.push((Action::LookupLeftBehind(key), after));
                }
            }
        }
        for (i, flight) in state.flights.iter().enumerate() {
            if let Some(flight) = flight {
                next.push((Action::Put(i), self.put(state, i, *flight)));
            }
        }
        if world.saves {
            self.session(state, next);
        }
        if state.acknowledged < world.purges {
            for (tags, soft) in [(A, false), (B, false), (A, true)] {
                if soft && !world.soft {
                    continue;
                }
                let mut after = *state;
                let plane = state.main.plane.unwrap_or_else(|| self.create(&mut after));
                let op = Op::Invalidate { now: state.clock, tags, soft };
                after.main.plane = Some(self.apply(plane, op));
                after.acknowledge(tags, soft);
                let action = if soft { Action::PurgeSoftly } else { Action::Purge };
                next.push((action(tags), after));
            }
            let mut after = *state;
            after.main.plane = Some(self.create(&mut after));
            after.acknowledge(A | B, false);
            (after.main.hard[2], after.ever[2]) = (after.acknowledged, after.acknowledged);
            next.push((Action::PurgeAll, after));
        }
        if state.losses < world.losses {
            let lost = State { losses: state.losses + 1, ..*state };
            if state.main.plane.is_some() {
                let main = Server { plane: None, ..state.main };
                next.push((Action::LoseRecord, State { main, ..lost }));
            }
            for key in 0..2 {
                let mut after = lost;
                after.main.forget(state.saver, key);
                if after.main != state.main {
                    next.push((Action::LoseEntry(key), after));
                }
            }
        }
        if state.failovers < world.failovers {
            if state.main != state.replica {
                next.push((Action::Replicate, State { replica: state.main, ..*state }));
            }
            next.push((Action::Failover, self.failover(state)));
        }
    }

    fn put(&mut self, state: &State, i: usize, flight: Flight) -> State {
        let mut after = *state;
        after.flights[i] = None;
        after.flights.sort();
        let key = usize::from(flight.key);
        if state.main.plane.is_none() && self.world.mutant == Mutant::PutRecreates {
            let Seen { generation, stamp, .. } = flight.fence;
            after.main.plane = Some(Plane { generation, last: stamp, ..Plane::default() });
        }
        let admitted = after.main.plane.filter(|plane| {
            let same_line = flight.fence.epoch == self.epoch(state)
                || self.world.mutant == Mutant::EpochIgnored;
            same_line && plane.admits(flight.fence, self.world.keys[key], self.world.mutant)
        });
        let Some(plane) = admitted else {
            self.found.refused += 1;
            assert_ne!(
                state.main.plane.map(|plane| plane.fence(self.epoch(state))),
                Some(flight.fence),
                "a fill since whose lookup nothing happened was refused"
            );
            return after;
        };
        after.main.plane = Some(self.apply(plane, Op::KeepFor(self.world.life)));
        after.main.forget(state.saver, flight.key);
        after.main.entries[key] = Some(Entry {
            fence: flight.fence,
            read: flight.read,
            deadline: state.clock + self.world.life,
            stored_in: state.failovers,
        });
        after
    }

    fn session(&mut self, state: &State, next: &mut Vec<(Action, State)>) {
        let Some(key) = state.saver else {
            for key in 0..2 {
                if self.is_live(state, usize::from(key)).is_some() {
                    let mut after = State { saver: Some(key), ..*state };
                    after.main.unsaved = true;
                    after.replica.unsaved = state.replica.entries[usize::from(key)]
                        == state.main.entries[usize::from(key)];
                    next.push((Action::ReadSession(key), after));
                }
            }
            return;
        };
        let mut after = State { saver: None, ..*state };
        (after.main.unsaved, after.replica.unsaved) = (false, false);
        let revives = self.world.mutant == Mutant::SaveRevives;
        let key = usize::from(key);
        let there = self.is_live(state, key).or(state.main.entries[key].filter(|_| revives));
        if let (Some(entry), Some(plane), true) = (there, state.main.plane, state.main.unsaved) {
            let fence = match self.world.mutant {
                Mutant::SaveRenewsFence | Mutant::SaveRevives => plane.fence(self.epoch(state)),
                _ => entry.fence,
            };
            let left = entry.deadline.saturating_sub(state.clock);
            after.main.plane = Some(self.apply(plane, Op::KeepFor(left)));
            after.main.entries[key] = Some(Entry { fence, ..entry });
        }
        next.push((Action::SaveSession, after));
    }

    fn failover(&mut self, state: &State) -> State {
        let mut after = State { failovers: state.failovers + 1, ..*state };
        match self.world.mutant {
            Mutant::RecordRestoredAlone => {
                after.main.plane = state.replica.plane;
                (after.main.hard, after.main.soft) = (state.replica.hard, state.replica.soft);
            }
            Mutant::EntriesRestoredAlone => {
                after.main.entries = state.replica.entries;
                after.main.unsaved = state.replica.unsaved;
            }
            _ => after.main = state.replica,
        }
        if self.world.mutant == Mutant::LaneLeftBehind {
            after.left_behind = state.main.plane.map(|plane| plane.fence(0));
        }
        after
    }
}

impl State {
    fn depart(&mut self, flight: Flight) {
        if let Some(free) = self.flights.iter_mut().find(|flight| flight.is_none()) {
            *free = Some(flight);
        }
        // Which of two handlers has which number makes no difference.
        self.flights.sort();
    }

    fn acknowledge(&mut self, tags: u8, soft: bool) {
        self.acknowledged += 1;
        for tag in of(tags) {
            if soft {
                self.main.soft[tag] = self.acknowledged;
            } else {
                (self.main.hard[tag], self.ever[tag]) = (self.acknowledged, self.acknowledged);
            }
        }
    }
}

impl Server {
    fn forget(&mut self, saver: Option<u8>, key: u8) {
        self.entries[usize::from(key)] = None;
        self.unsaved &= saver != Some(key);
    }
}

fn latest(purged: &Purged, tags: u8) -> u8 {
    of(tags).map(|tag| purged[tag]).max().unwrap_or(0).max(purged[2])
}

/// The real record answers every fence as the plane does, and always admits the fence of now.
fn agree(record: &Record, plane: &Plane) {
    let now = record.fence(0);
    assert_eq!((now.generation(), now.stamp()), (plane.generation.into(), plane.last.into()));
    for tags in 0..4 {
        let digests = digests(tags);
        assert!(record.admits(&now, &digests), "a fill after the purge is refused: {plane:?}");
        for stamp in 0..=plane.last + 2 {
            for generation in [plane.generation, plane.generation + 1] {
                let seen = Seen { generation, stamp, epoch: 0 };
                let fence = Fence::new(generation.into(), stamp.into(), 0);
                assert_eq!(
                    record.admits(&fence, &digests),
                    plane.admits(seen, tags, Mutant::None),
                    "{record:?} {fence:?} {tags}"
                );
                // Staleness is asked only of entries that are alive.
                if record.admits(&fence, &digests) {
                    assert_eq!(record.is_stale(&fence, &digests), plane.is_stale(seen, tags));
                }
            }
        }
    }
}

fn path(came_from: &[(usize, Action)], mut number: usize) -> Vec<Action> {
    let mut path = Vec::new();
    while number != 0 {
        let (before, action) = came_from[number];
        path.push(action);
        number = before;
    }
    path.reverse();
    path
}

/// More of everything with `TOWER_KEEP_LONG`.
fn more() -> u8 {
    std::env::var_os("TOWER_KEEP_LONG").is_some().into()
}

#[track_caller]
fn holds(world: World) {
    let found = Search::run(world);
    assert!(found.violation.is_none(), "{}", found.violation.unwrap_or_default());
    assert!(found.served > 100 && found.refused > 100, "the world is too quiet: {found:?}");
}

#[track_caller]
fn is_missed(mutant: Mutant, world: World) {
    let found = Search::run(World { mutant, ..world });
    println!("{}", found.violation.expect("the search finds where the clause is missed"));
}

#[test]
fn nothing_that_was_purged_is_served_while_the_clock_steps_forward_and_back() {
    holds(World {
        purges: 3,
        backs: 1 + more(),
        soft: true,
        flights: 1 + usize::from(more()),
        used: 1,
        ..CALM
    });
}

#[test]
fn nothing_that_was_purged_is_served_with_two_handlers_in_flight() {
    holds(World { backs: 1, ticks: 2 + more(), ..CALM });
}

#[test]
fn an_entry_without_tags_ends_with_everything_and_only_then() {
    holds(World { keys: [0, B], backs: more(), ..CALM });
}

#[test]
fn a_save_does_not_outlive_the_end_of_all_sessions() {
    holds(World {
        saves: true,
        backs: 1,
        losses: 1,
        flights: 1,
        used: 1,
        ticks: 2 + more(),
        life: 2,
        ..CALM
    });
}

#[test]
fn a_lost_record_makes_nothing_live_again() {
    holds(World {
        losses: 2,
        ticks: 2,
        purges: 2 + more(),
        flights: 1 + usize::from(more()),
        used: 1,
        ..CALM
    });
}

#[test]
fn after_a_failover_only_what_it_lost_is_forgotten() {
    holds(World {
        failovers: 1,
        losses: more(),
        ticks: 1 + more(),
        life: 2,
        flights: 1,
        used: 1,
        purges: 3 - more(),
        ..CALM
    });
}

#[test]
fn a_save_after_a_failover_revives_nothing() {
    holds(World { failovers: 1, saves: true, ticks: 1, life: 2, flights: 1, used: 1, ..CALM });
}

#[test]
fn an_unnoticed_failover_is_harmless_until_the_record_has_caught_up() {
    holds(World {
        failovers: 1,
        unnoticed: true,
        backs: 1,
        ticks: 2,
        life: 2,
        flights: 1,
        used: 1,
        ..CALM
    });
}

#[test]
fn entries_may_go_back_to_an_earlier_state_without_their_record() {
    let mutant = Mutant::EntriesRestoredAlone;
    holds(World { mutant, failovers: 1, ticks: 1, life: 2, flights: 1, used: 1, ..CALM });
}

#[test]
fn the_floor_is_needed() {
    is_missed(Mutant::NoFloor, World { flights: 1, used: 1, ..CALM });
}

#[test]
fn a_put_that_recreates_the_record_serves_the_purged() {
    is_missed(Mutant::PutRecreates, World { losses: 1, ..CALM });
}

#[test]
fn stamps_that_do_not_rise_let_a_purge_be_overlooked() {
    is_missed(Mutant::StampIsClock, CALM);
}

#[test]
fn a_fence_from_the_future_outlives_a_purge() {
    let world = World { failovers: 1, unnoticed: true, backs: 1, ticks: 2, life: 2, ..CALM };
    is_missed(Mutant::FutureAccepted, World { flights: 1, used: 1, ..world });
}

#[test]
fn a_fence_from_before_a_failover_outlives_a_purge() {
    is_missed(Mutant::EpochIgnored, World { failovers: 1, flights: 1, used: 1, ..CALM });
}

#[test]
fn a_save_with_a_new_fence_hides_a_soft_purge() {
    is_missed(
        Mutant::SaveRenewsFence,
        World { saves: true, soft: true, flights: 1, used: 1, ..CALM },
    );
}

#[test]
fn a_save_on_a_dead_entry_with_a_new_fence_outlives_the_end_of_all_sessions() {
    is_missed(Mutant::SaveRevives, World { saves: true, flights: 1, used: 1, ..CALM });
}

#[test]
fn a_request_that_joins_any_flight_gets_what_was_purged() {
    is_missed(Mutant::JoinAnyFlight, CALM);
}

#[test]
fn connections_that_are_not_replaced_together_let_a_lost_fence_in() {
    let world = World { failovers: 1, purges: 4, ticks: 1, life: 2, flights: 1, used: 1, ..CALM };
    is_missed(Mutant::LaneLeftBehind, world);
}

#[test]
fn a_record_that_goes_back_without_its_entries_serves_the_purged() {
    let world = World { failovers: 1, purges: 4, ticks: 1, life: 2, flights: 1, used: 1, ..CALM };
    is_missed(Mutant::RecordRestoredAlone, world);
}
