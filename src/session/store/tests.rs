use std::cell::Cell;

use super::*;
use crate::storage::memory::MemoryStorage;

thread_local! {
    /// How often the source of tokens gives the same one.
    static REPEATS: Cell<usize> = const { Cell::new(0) };
    static DRAWN: Cell<usize> = const { Cell::new(0) };
}

fn repeating() -> SessionToken {
    DRAWN.set(DRAWN.get() + 1);
    match REPEATS.get() {
        0 => SessionToken::random(),
        left => {
            REPEATS.set(left - 1);
            SessionToken::from_bytes([7; 32])
        }
    }
}

fn store() -> Store {
    let policy = Policy::new();
    let namespace = policy.namespace().unwrap();
    Store::new(MemoryStorage::new().erase(), policy, namespace).with_tokens(repeating)
}

fn with(name: &str) -> Fields {
    let mut map = SessionMap::default();
    map.insert(name, &true).unwrap();
    map.into_fields()
}

async fn begin(store: &Store, name: &str) -> Result<Loaded, SessionError> {
    let live = store.anonymous(with(name));
    store.create(live, None, store.policy.lifetime, None).await.map(Option::unwrap)
}

async fn holds(store: &Store, token: &SessionToken, name: &str) -> bool {
    let found = store.load(token, token.digest()).await.unwrap().session;
    found.is_some_and(|session| session.live.fields == with(name))
}

#[tokio::test]
async fn an_id_that_is_taken_is_never_given_to_another_session() {
    let store = store();
    REPEATS.set(1);
    let first = begin(&store, "first").await.unwrap().token.unwrap();
    assert_eq!(first, SessionToken::from_bytes([7; 32]));
    for repeats in 1..MOST_COLLISIONS {
        REPEATS.set(repeats);
        DRAWN.set(0);
        let second = begin(&store, "second").await.unwrap().token.unwrap();
        assert_eq!(DRAWN.get(), repeats + 1);
        assert_ne!(second, first);
        assert!(holds(&store, &second, "second").await);
        assert!(holds(&store, &first, "first").await);
    }
}

#[tokio::test]
async fn a_source_that_gives_one_token_only_begins_no_second_session() {
    let store = store();
    REPEATS.set(1);
    let first = begin(&store, "first").await.unwrap();
    let token = first.token.clone().unwrap();
    let fence = store.fence().await.unwrap();

    REPEATS.set(usize::MAX);
    let error = begin(&store, "second").await.err().unwrap().to_string();
    assert!(error.contains("randomness"), "{error}");
    // Neither can it rotate into itself, nor log in.
    let (live, left) = first.renewed();
    for how in [Replacement::Rotation, Replacement::Privilege] {
        assert!(store.replace(&first, live.clone(), left, fence, how).await.is_err());
    }
    let live = Live { principal: Some("eve".into()), ..store.anonymous(Fields::default()) };
    assert!(store.login(Some(&first), live, left, fence).await.is_err());
    assert!(holds(&store, &token, "first").await);
    REPEATS.set(0);
}

#[tokio::test]
async fn a_token_that_has_just_moved_on_is_not_taken_over_either() {
    let store = store();
    REPEATS.set(1);
    let first = begin(&store, "first").await.unwrap();
    let (live, left) = first.renewed();
    let moved = store.replace(&first, live, left, None, Replacement::Privilege).await.unwrap();
    let moved = moved.unwrap().token.unwrap();
    REPEATS.set(1);
    let other = begin(&store, "other").await.unwrap().token.unwrap();
    assert!(other != SessionToken::from_bytes([7; 32]) && other != moved);
    assert!(holds(&store, &moved, "first").await);
}
