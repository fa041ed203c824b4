//! What was ended stays so, and what was acknowledged is there, whoever else is at it.

use std::time::{Duration, Instant};

use tower_keep::{
    session::{Notice, Policy},
    storage::AnyStorage,
};

use crate::nodes::{Gate, Outcome, World, count, races};

/// Patient enough for a busy machine and for a thousand at once.
pub(crate) fn policy(seed: usize) -> Policy {
    Policy::named(&format!("n{seed}")).with_timeout(Duration::from_secs(20))
}

/// All the ways in which a handler may write.
const WRITES: [&str; 5] = ["set", "save", "count", "add", "flash"];

races! {
    /// Whoever has looked the session up before its end may save when he likes: it is in vain.
    a_logout_is_the_end, rounds: 3, 30, policy, a_logout_is_the_end_of
}

async fn a_logout_is_the_end_of(world: World) {
    let many = count(200, 1_000);
    let start = world.any().ask("/set/first", None).await.done().new_id();
    let id = match world.dice.one_in(2) {
        true => world.any().ask("/login/alice", Some(&start)).await.done().new_id(),
        false => start,
    };
    let (racing, late) = (Gate::new(&world.dice), Gate::new(&world.dice));
    let write = |number: usize, gate: &Gate| {
        let what = WRITES[number % WRITES.len()];
        world.nodes[number % world.nodes.len()].begin(
            &format!("/{what}/{number}"),
            Some(&id),
            Some(gate),
        )
    };
    let mut writes: Vec<_> = (0..many).map(|number| write(number, &racing)).collect();
    let late_writes: Vec<_> = (0..WRITES.len() * 2).map(|number| write(number, &late)).collect();
    racing.crowd(many).await;
    late.crowd(late_writes.len()).await;
    racing.open();
    world.dice.pause().await;
    let logout = world.any().ask("/logout/-", Some(&id)).await.done();
    assert_eq!(logout.cookie, Some(None));
    assert_eq!(world.look(&id).await, None, "right after the logout");
    late.open();
    for write in late_writes {
        let reply = write.await.unwrap();
        assert_eq!(reply.outcome(), Outcome::Gone, "it saved after the logout: {reply:?}");
        assert_eq!(reply.cookie, None);
    }
    let mut won = 0;
    for write in writes.drain(..) {
        let reply = write.await.unwrap();
        match reply.outcome() {
            Outcome::Done => won += 1,
            Outcome::Gone => {}
            _ => panic!("{reply:?}"),
        }
        assert_eq!(reply.cookie, None, "a save gives no new id");
    }
    assert_eq!(world.look(&id).await, None, "after all saves, of which {won} won");
}

races! {
    /// The ids of a rotation that was under way die as well.
    a_logout_ends_a_session_that_is_being_rotated, rounds: 10, 300, policy,
    a_logout_races_rotations
}

async fn a_logout_races_rotations(world: World) {
    let id = world.any().login("alice").await;
    let gate = Gate::new(&world.dice);
    let acts = ["rotate", "prove", "others", "set", "rotate"];
    let begin = |what: &str| world.any().begin(&format!("/{what}/x"), Some(&id), Some(&gate));
    let rotations: Vec<_> = acts.map(begin).into();
    let logout = begin("logout");
    gate.crowd(rotations.len() + 1).await;
    gate.open();
    logout.await.unwrap().done();
    for rotation in rotations {
        let reply = rotation.await.unwrap();
        assert!(matches!(reply.outcome(), Outcome::Done | Outcome::Gone), "{reply:?}");
        if let Some(Some(new)) = reply.cookie {
            assert_eq!(world.look(&new).await, None, "a new id lives on");
        }
    }
    assert_eq!(world.look(&id).await, None);
}

races! {
    /// Each adds its own, by the two ways that lose nothing.
    parallel_requests_lose_nothing, rounds: 1, 20, policy, parallel_writes
}

races! {
    /// The same, while the id changes again and again.
    parallel_requests_lose_nothing_while_the_id_rotates, rounds: 1, 20,
    |seed| policy(seed).with_rotation(Duration::from_millis(1)), parallel_writes
}

async fn parallel_writes(world: World) {
    const EACH: usize = 64;
    let id = world.any().ask("/set/first", None).await.done().new_id();
    let gate = Gate::new(&world.dice);
    let mut writes = Vec::new();
    for number in 0..EACH {
        for what in ["set", "save", "count", "add"] {
            let node = &world.nodes[(number + writes.len()) % world.nodes.len()];
            let gate = Some(&gate).filter(|_| !world.dice.one_in(4));
            writes.push(node.begin(&format!("/{what}/{number}"), Some(&id), gate));
        }
        if world.dice.one_in(16) {
            world.dice.pause().await;
        }
    }
    gate.open();
    let mut newest = id.clone();
    for write in writes {
        let reply = write.await.unwrap().done();
        if let Some(new) = reply.cookie {
            newest = new.expect("nobody has logged out");
        }
    }
    for id in [&id, &newest] {
        let look = world.look(id).await.expect("it lives");
        assert_eq!(look.tally.count, EACH as u64);
        let mut list = look.tally.list.clone();
        list.sort_unstable();
        assert!(list.into_iter().eq(0..EACH as u64), "{look:?}");
        for number in 0..EACH {
            assert!(look.has(&number.to_string()), "{number} is lost: {look:?}");
        }
    }
}

races! {
    /// What was acknowledged before the end of a rotation has come along.
    a_change_of_privileges_takes_along_what_was_saved, rounds: 10, 300, policy,
    rotations_race_writes
}

async fn rotations_race_writes(world: World) {
    let start = world.any().ask("/set/first", None).await.done().new_id();
    let known = world.dice.one_in(2);
    let id = match known {
        true => world.any().ask("/login/alice", Some(&start)).await.done().new_id(),
        false => start,
    };
    let what = ["rotate", if known { "prove" } else { "login" }][world.dice.below(2) as usize];
    let gate = Gate::new(&world.dice);
    let writes: Vec<_> = (0..24)
        .map(|number| {
            let what = ["set", "save", "add"][number % 3];
            let task = world.any().begin(&format!("/{what}/{number}"), Some(&id), Some(&gate));
            (number, task)
        })
        .collect();
    gate.crowd(writes.len()).await;
    gate.open();
    world.dice.pause().await;
    let rotated = world.any().ask(&format!("/{what}/alice"), Some(&id)).await.done();
    let new = rotated.new_id();
    let mut acknowledged = 0;
    let look = async || world.look(&new).await.expect("it lives");
    for (number, write) in writes {
        let reply = write.await.unwrap();
        let wrote = match reply.outcome() {
            Outcome::Done => true,
            Outcome::Gone => false,
            _ => panic!("{reply:?}"),
        };
        acknowledged += usize::from(wrote);
        let look = look().await;
        let there = match number % 3 {
            2 => look.tally.list.contains(&(number as u64)),
            _ => look.has(&number.to_string()),
        };
        assert!(there || !wrote, "{number} was acknowledged and is lost: {look:?}");
    }
    assert_eq!(world.look(&id).await, None, "the old id is dead ({acknowledged} saved)");
    assert!(look().await.has("first"));
}

races! {
    /// Whoever rotates, there is one new id, and the old one works until it was used.
    periodic_rotations_at_once_give_one_new_id, rounds: 10, 200,
    |seed| policy(seed).with_rotation(Duration::from_millis(40)), periodic_rotations
}

async fn periodic_rotations(world: World) {
    let id = world.any().ask("/set/first", None).await.done().new_id();
    let gate = Gate::new(&world.dice);
    let requests: Vec<_> = (0..20)
        .map(|number| {
            let what = ["read", "set", "save"][number % 3];
            world.any().begin(&format!("/{what}/{number}"), Some(&id), Some(&gate))
        })
        .collect();
    gate.crowd(requests.len()).await;
    tokio::time::sleep(Duration::from_millis(45)).await;
    gate.open();
    let mut new = Vec::new();
    for request in requests {
        new.extend(request.await.unwrap().done().cookie);
    }
    assert!(!new.is_empty() && new.iter().all(|id| *id == new[0]), "{new:?}");
    let new = new.swap_remove(0).expect("nobody has logged out");
    // As often as the answer with the new id is lost.
    for _ in 0..12 {
        let again = world.any().ask("/read/-", Some(&id)).await.done();
        assert_eq!(again.cookie, Some(Some(new.clone())));
        assert!(world.any().look(&id).await.unwrap().has("first"));
    }
    world.any().ask("/read/-", Some(&new)).await.done();
    let old = world.any().ask("/read/-", Some(&id)).await.done();
    assert_eq!(old.cookie, None, "the client has told that it knows");
    assert!(world.any().look(&id).await.unwrap().has("first"), "in its grace");
    for node in &world.nodes {
        assert!(!node.notices().contains(&Notice::IdReused));
    }
}

/// On Redis as well: its clock is its own.
#[tokio::test]
async fn on_redis_an_old_id_works_for_its_grace_and_no_longer() {
    let server = crate::support::RedisServer::start();
    let storage = crate::redis_storage(&server.url(), "races").await;
    let grace = Duration::from_millis(400);
    let policy = policy(0).with_rotation(Duration::from_millis(50)).with_rotation_grace(grace);
    let node = crate::nodes::Node::new(storage, policy);
    let old = node.ask("/set/first", None).await.done().new_id();
    tokio::time::sleep(Duration::from_millis(60)).await;
    let new = node.ask("/read/-", Some(&old)).await.done().new_id();
    let used = Instant::now();
    node.ask("/read/-", Some(&new)).await.done();
    let alive = node.look(&old).await.is_some();
    assert!(alive || used.elapsed() > grace);
    tokio::time::sleep(grace + Duration::from_millis(20)).await;
    assert_eq!(node.look(&old).await, None);
    assert_eq!(node.notices(), [Notice::IdReused]);
    assert!(node.look(&new).await.unwrap().has("first"));
    server.check_keys("races");
}

/// A deadline can be told to a server only as a duration, so it may move by what the message takes.
#[tokio::test]
async fn on_redis_rotations_do_not_extend_the_deadline() {
    let server = crate::support::RedisServer::start();
    let storage = crate::redis_storage(&server.url(), "races").await;
    let lifetime = Duration::from_secs(100);
    let node = crate::nodes::Node::new(storage, policy(0).with_lifetime(lifetime));
    let began = Instant::now();
    let mut id = node.ask("/set/first", None).await.done().new_id();
    let created = began.elapsed();
    let mut trips = Duration::ZERO;
    for _ in 0..50 {
        let sent = Instant::now();
        id = node.ask("/rotate/-", Some(&id)).await.done().new_id();
        trips += sent.elapsed();
    }
    let left = node.look(&id).await.unwrap().life_left;
    let ends = began.elapsed() + left;
    assert!(ends <= lifetime + created + trips, "it ends {ends:?} after it began");
    assert!(ends >= lifetime - trips, "it ends {ends:?} after it began");
}
