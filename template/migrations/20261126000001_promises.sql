-- Promises that did not hold: a batch is remembered for an hour even if its session is deleted, every function locks in one
-- order, and opening a store is one question.
--
-- Cost: writers wait while the batches of the last hour are copied, which reads the sessions that were written to in that
-- hour and no others; readers wait for a moment at the end. Programs of the two versions before may run on.

-- ── Batches ─────────────────────────────────────────────────────────────────

create table public.agent_session_batches (
  user_id text not null,
  session_id text not null,
  batch_id uuid not null,
  created_at timestamptz not null default now(),
  constraint agent_session_batches_key primary key (user_id, session_id, batch_id)
)
-- Rows come and go; what is gone must not pile up at the beginning of the index on time.
with (autovacuum_vacuum_scale_factor = 0.02);
create index agent_session_batches_created on public.agent_session_batches (created_at);

comment on table public.agent_session_batches is
  'Batches of the last hour: a repeated one is stored once, even if its session was deleted. No content.';
comment on column public.agent_session_batches.created_at is 'A row is kept for an hour at least; agent_session_forget removes it later.';

-- Roles that may use the sessions may use this table too: an app's role needs no new rights after an upgrade.
do $$
declare
  v_right text;
  v_role text;
begin
  for v_right, v_role in
    select acl.privilege_type, case acl.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(acl.grantee)) end
    from pg_catalog.pg_class, aclexplode(relacl) as acl
    where pg_class.oid = 'public.agent_session_info'::regclass and acl.grantee <> relowner
      and acl.privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
  loop
    execute format('grant %s on public.agent_session_batches to %s', v_right, v_role);
  end loop;
end
$$;

-- An append of the versions before is a statement of its own, which writes batch_id and expects this error.
create function public.agent_session_batch_of_older_program() returns trigger
language plpgsql set search_path = '' as $$
begin
  insert into public.agent_session_batches (user_id, session_id, batch_id)
    values (new.user_id, new.session_id, new.batch_id)
    on conflict do nothing;
  if not found then
    raise unique_violation using message = 'this batch was stored before', constraint = 'agent_sessions_batch';
  end if;
  return new;
end
$$;
comment on function public.agent_session_batch_of_older_program is
  'Programs of version 20261123000002 and before write agent_sessions.batch_id: their batches are remembered, too.';
-- One statement, for tools that do not apply a migration in one transaction.
do $$
begin
  -- Writers wait, for this one table: they take it and agent_session_info in either order, as their statement is planned anew
  -- or not, so whoever took both could wait for a writer that waits for it.
  lock table public.agent_sessions in share row exclusive mode;
  insert into public.agent_session_batches (user_id, session_id, batch_id, created_at)
    select item.user_id, item.session_id, item.batch_id, item.created_at
    from public.agent_session_info as info
    join public.agent_sessions as item on item.user_id = info.user_id and item.session_id = info.session_id
    where info.updated_at > now() - interval '1 hour' and item.created_at > now() - interval '1 hour'
      and item.batch_id is not null
    union
    -- When these were stored is not known.
    select info.user_id, info.session_id, batch_id, now()
    from public.agent_session_info as info, unnest(info.recent_batches) as batch_id
    where info.updated_at > now() - interval '1 hour'
    on conflict do nothing;

  create trigger agent_session_batch_of_older_program before insert on public.agent_sessions
    for each row when (new.batch_id is not null) execute function public.agent_session_batch_of_older_program();
  drop index public.agent_sessions_batch;
end
$$;

comment on column public.agent_sessions.batch_id is 'Written by programs of version 20261123000002 and before. See agent_session_batches.';
comment on column public.agent_session_info.recent_batches is 'Not used any more; programs of version 20261123000002 and before read it.';

create function public.agent_session_forget(p_limit bigint) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_old record;
begin  -- changes
  -- One by one and by the key: a plan for all at once might read the whole table.
  for v_old in
    select user_id, session_id, batch_id from public.agent_session_batches
    where created_at < now() - interval '1 hour'
    order by created_at
    limit (select p_limit)
    for update skip locked
  loop
    delete from public.agent_session_batches
      where user_id = v_old.user_id and session_id = v_old.session_id and batch_id = v_old.batch_id;
  end loop;
end
$$;
comment on function public.agent_session_forget is
  'Removes up to p_limit batches that are older than an hour, of all sessions, and waits for nobody. With the rights of the '
  'owner: the batches of those who do not come back are tidied by others.';

-- ── Locks ───────────────────────────────────────────────────────────────────
-- Every function takes its locks in one order, so that no two ever wait for each other:
--
--   1. its batch (append, replace_tail): the key of agent_session_batches. Only the same batch waits for it, and holds
--      nothing while it waits.
--   2. the session's row of agent_session_info; of several rows by their key (delete_user), or without waiting (prune).
--   3. rows of agent_sessions. They are only touched by the holder of 2, so nobody waits here.
--
-- agent_session_forget locks batches without waiting, at any time. A function that finds no row to lock in 2 leaves 3 alone,
-- and what it reads after 2 it reads in a new statement, which sees what the previous holder of the lock did.
--
-- A batch is recorded where it is stored, by a key that every repetition hits. (A note made by the one who deletes would not
-- be seen by an append that waits for the deletion: its snapshot is older.)
--
-- `-- changes` marks every function that changes something: what is built on this file may put a check in its place.

create or replace function public.agent_session_append(
  p_user_id text, p_session_id text, p_batch_id uuid, p_contents text[], p_roles text[], p_title text
) returns boolean
language plpgsql set search_path = '' as $$
begin  -- changes
  -- Each part begins when the one before has its lock; only then does the last one take its ids.
  with batch as (
    insert into public.agent_session_batches (user_id, session_id, batch_id)
    values (p_user_id, p_session_id, p_batch_id)
    on conflict do nothing
    returning batch_id
  ), session as (
    insert into public.agent_session_info as info (user_id, session_id, title, item_count, updated_at)
    select p_user_id, p_session_id, p_title, cardinality(p_contents), clock_timestamp() from batch
    on conflict (user_id, session_id) do update
      set item_count = info.item_count + excluded.item_count,
          updated_at = clock_timestamp(),
          title = coalesce(info.title, excluded.title)
    -- One of a hundred appends tidies up after two hundred.
    returning updated_at, case when random() < 0.01 then public.agent_session_forget(200) end
  )
  insert into public.agent_sessions (user_id, session_id, role, content, created_at)
    select p_user_id, p_session_id, item.role, item.content, session.updated_at
    from session, unnest(p_contents, p_roles) as item (content, role);
  return found;
end
$$;
comment on function public.agent_session_append is
  'Stores all items of a batch after everything stored before, or none. A batch that was stored within the last hour is not '
  'stored again, whatever became of it: false.';

create or replace function public.agent_session_pop(p_user_id text, p_session_id text) returns text
language plpgsql set search_path = '' as $$
declare
  v_content text;
begin  -- changes
  -- Lock the session's row first, delete in a second statement: its snapshot then sees what the previous holder of the
  -- lock did. In one statement, concurrent pops find the same item and all but one return a false "empty".
  update public.agent_session_info
    set item_count = item_count - 1, updated_at = clock_timestamp()
    where user_id = p_user_id and session_id = p_session_id and item_count > 0;
  if not found then
    return null;
  end if;
  delete from public.agent_sessions
    where user_id = p_user_id and session_id = p_session_id and id = (
      select id from public.agent_sessions
      where user_id = p_user_id and session_id = p_session_id
      order by id desc
      limit 1
    )
    returning content into v_content;
  return v_content;
end
$$;

create or replace function public.agent_session_clear(p_user_id text, p_session_id text) returns void
language plpgsql set search_path = '' as $$
begin  -- changes
  update public.agent_session_info
    set item_count = 0, updated_at = clock_timestamp()
    where user_id = p_user_id and session_id = p_session_id;
  if not found then
    return;  -- it may be in the making: what is not locked is not touched
  end if;
  delete from public.agent_sessions where user_id = p_user_id and session_id = p_session_id;
end
$$;

create or replace function public.agent_session_replace_tail(
  p_user_id text, p_session_id text, p_expected text[], p_batch_id uuid, p_contents text[], p_roles text[], p_title text
) returns boolean
language plpgsql set search_path = '' as $$
declare
  v_ids bigint[];
  v_contents text[];
  v_removed bigint := 0;
begin  -- changes
  insert into public.agent_session_batches (user_id, session_id, batch_id)
    values (p_user_id, p_session_id, p_batch_id)
    on conflict do nothing;
  if not found then
    return true;
  end if;

  perform from public.agent_session_info
    where user_id = p_user_id and session_id = p_session_id for no key update;
  if not found and cardinality(p_expected) > 0 then
    delete from public.agent_session_batches
      where user_id = p_user_id and session_id = p_session_id and batch_id = p_batch_id;
    return false;
  end if;
  if not found and cardinality(p_contents) = 0 then
    return true;  -- nothing in the place of nothing: no session comes into being
  end if;
  if not found then
    -- It may be in the making elsewhere: then this waits for it.
    insert into public.agent_session_info as info (user_id, session_id) values (p_user_id, p_session_id)
      on conflict (user_id, session_id) do update set item_count = info.item_count;
  end if;

  if p_expected is null then
    delete from public.agent_sessions where user_id = p_user_id and session_id = p_session_id;
    get diagnostics v_removed = row_count;
  elsif cardinality(p_expected) > 0 then
    select array_agg(id), coalesce(array_agg(content order by id), '{}') into v_ids, v_contents
      from (
        select id, content from public.agent_sessions
        where user_id = p_user_id and session_id = p_session_id
        order by id desc
        limit (select cardinality(p_expected))
      ) as tail;
    if v_contents <> p_expected then
      -- Nothing was done, so there is nothing to remember.
      delete from public.agent_session_batches
        where user_id = p_user_id and session_id = p_session_id and batch_id = p_batch_id;
      return false;
    end if;
    delete from public.agent_sessions
      where user_id = p_user_id and session_id = p_session_id and id = any (v_ids);
    get diagnostics v_removed = row_count;
  end if;

  with session as (
    update public.agent_session_info
      set item_count = greatest(item_count - v_removed, 0) + cardinality(p_contents),
          updated_at = clock_timestamp(),
          title = case when cardinality(p_contents) > 0 then coalesce(title, p_title) else title end
      where user_id = p_user_id and session_id = p_session_id
      returning updated_at
  )
  insert into public.agent_sessions (user_id, session_id, role, content, created_at)
    select p_user_id, p_session_id, item.role, item.content, session.updated_at
    from session, unnest(p_contents, p_roles) as item (content, role);
  return true;
end
$$;
comment on function public.agent_session_replace_tail is
  'Puts a batch in the place of the newest items if they still are p_expected, oldest first (null: all items, whatever they '
  'are). Repeated within an hour it changes nothing and returns true, if it was done; otherwise it is judged anew.';

create or replace function public.agent_session_update(p_user_id text, p_session_id text, p_title text, p_metadata jsonb)
returns boolean
language plpgsql set search_path = '' as $$
begin  -- changes
  update public.agent_session_info
    set title = coalesce(p_title, title), metadata = coalesce(p_metadata, metadata)
    where user_id = p_user_id and session_id = p_session_id;
  return found;
end
$$;

create or replace function public.agent_session_delete(p_user_id text, p_session_id text) returns boolean
language plpgsql set search_path = '' as $$
begin  -- changes
  delete from public.agent_session_info where user_id = p_user_id and session_id = p_session_id;
  if not found then
    return false;
  end if;
  delete from public.agent_sessions where user_id = p_user_id and session_id = p_session_id;
  perform public.agent_session_forget(500);
  return true;
end
$$;

create or replace function public.agent_session_delete_user(p_user_id text) returns bigint
language plpgsql set search_path = '' as $$
declare
  v_sessions text[];
begin  -- changes
  v_sessions := array(
    select session_id from public.agent_session_info where user_id = p_user_id order by session_id for update
  );
  if cardinality(v_sessions) > 0 then
    delete from public.agent_session_info where user_id = p_user_id and session_id = any (v_sessions);
    delete from public.agent_sessions where user_id = p_user_id and session_id = any (v_sessions);
  end if;
  perform public.agent_session_forget(500);
  return cardinality(v_sessions);
end
$$;

create or replace function public.agent_session_prune(p_older_than timestamptz, p_limit bigint) returns bigint
language plpgsql set search_path = '' as $$
declare
  v_users text[];
  v_sessions text[];
begin  -- changes
  with old as (
    -- A session that is being written to is locked, so it is skipped; it is not old any more.
    select user_id, session_id from public.agent_session_info
    where updated_at < p_older_than
    order by updated_at
    limit p_limit
    for update skip locked
  ), gone as (
    delete from public.agent_session_info as info using old
    where info.user_id = old.user_id and info.session_id = old.session_id
    returning info.user_id, info.session_id
  )
  select coalesce(array_agg(user_id), '{}'), coalesce(array_agg(session_id), '{}') into v_users, v_sessions from gone;
  if cardinality(v_sessions) > 0 then
    delete from public.agent_sessions as item using unnest(v_users, v_sessions) as old (user_id, session_id)
      where item.user_id = old.user_id and item.session_id = old.session_id;
  end if;
  perform public.agent_session_forget(10000);
  return cardinality(v_sessions);
end
$$;

-- ── Encryption ──────────────────────────────────────────────────────────────

create or replace function public.agent_session_canary(p_user_id text, p_kept text, p_text text) returns text
language plpgsql set search_path = '' as $$
begin
  if p_kept is not null or p_text is not null then  -- changes
    if p_kept is null then
      -- Looked for first, so that opening a store that has one writes nothing.
      if not exists (select from public.agent_session_canary where user_id = p_user_id) then
        insert into public.agent_session_canary (user_id, text) values (p_user_id, p_text)
        on conflict (user_id) do nothing;
      end if;
    else
      if p_text is null then
        delete from public.agent_session_canary where user_id = p_user_id and text = p_kept;
      else
        update public.agent_session_canary set text = p_text where user_id = p_user_id and text = p_kept;
      end if;
      if found and p_user_id = '' then
        -- The users' follow: each is made anew when its user comes back.
        delete from public.agent_session_canary where user_id <> '';
      end if;
    end if;
  end if;
  return (select text from public.agent_session_canary where user_id = p_user_id);
end
$$;

create or replace function public.agent_session_rewrite(
  p_user_id text, p_session_id text, p_first bigint, p_expected text[], p_contents text[],
  p_expected_title text, p_title text, p_expected_metadata jsonb, p_metadata jsonb
) returns boolean
language plpgsql set search_path = '' as $$
begin  -- changes
  return public.agent_session_rewrite_v2(
    p_user_id, p_session_id, null, p_first, p_expected, p_contents,
    p_expected_title, p_title, p_expected_metadata, p_metadata
  ) is not null;
end
$$;

create function public.agent_session_rewrite_v2(
  p_user_id text, p_session_id text, p_after bigint, p_skip bigint, p_expected text[], p_contents text[],
  p_expected_title text, p_title text, p_expected_metadata jsonb, p_metadata jsonb
) returns bigint
language plpgsql set search_path = '' as $$
declare
  v_ids bigint[];
  v_contents text[];
begin  -- changes
  perform from public.agent_session_info
    where user_id = p_user_id and session_id = p_session_id
      and title is not distinct from p_expected_title and metadata = p_expected_metadata
    for no key update;
  if not found then
    return null;
  end if;
  if p_after is not null and not exists (
    select from public.agent_sessions where user_id = p_user_id and session_id = p_session_id and id = p_after
  ) then
    return null;
  end if;
  select coalesce(array_agg(id order by id), '{}'), coalesce(array_agg(content order by id), '{}')
    into v_ids, v_contents
    from (
      select id, content from public.agent_sessions
      where user_id = p_user_id and session_id = p_session_id
        and id > coalesce(p_after, -9223372036854775808)
      order by id
      offset p_skip
      limit (select cardinality(p_expected))
    ) as part;
  if v_contents <> p_expected then
    return null;
  end if;
  update public.agent_sessions as item set content = new.content
    from unnest(v_ids, p_contents) as new (id, content)
    where item.user_id = p_user_id and item.session_id = p_session_id and item.id = new.id
      and item.id between v_ids[1] and v_ids[cardinality(v_ids)]  -- or the whole session might be read
      and item.content <> new.content;
  update public.agent_session_info set title = coalesce(p_title, title), metadata = p_metadata
    where user_id = p_user_id and session_id = p_session_id;
  return coalesce(v_ids[cardinality(v_ids)], p_after, 0);
end
$$;
comment on function public.agent_session_rewrite_v2 is
  'Puts other texts in the place of title, metadata and some items, if they still are what is expected: those after the item '
  'p_after (null: from the beginning), but for the first p_skip of them. Nothing else changes: no time, no order, no batch. '
  'Returns the id of the last item, from which the next call goes on, so that rewriting a whole session takes time in '
  'proportion to its length; null if something is not as expected, or p_after is gone.';

-- ── Opening ─────────────────────────────────────────────────────────────────

create function public.agent_session_open(p_user_id text) returns text[]
language sql stable set search_path = '' as $$
  select array[version[1]::text, version[2]::text, (select text from public.agent_session_canary where user_id = p_user_id)]
  from public.agent_session_schema_version() as version
$$;
comment on function public.agent_session_open is
  'All that a program asks when it opens a store: the newest migration, the oldest one whose programs may still use this '
  'schema, and what agent_session_canary keeps for p_user_id (empty: for the app); null if nothing is encrypted.';

create or replace function public.agent_session_schema_version() returns bigint[]
language sql stable set search_path = '' as $$
  -- Not immutable: then a plan made for one role would hold the answer for the next, allowed or not.
  select array[20261126000001, 20261123000001]::bigint[]
$$;

-- ── Rows that cannot be read ────────────────────────────────────────────────

create function public.agent_session_pop_object(p_user_id text, p_session_id text) returns text
language plpgsql set search_path = '' as $$
declare
  v_id bigint;
  v_content text;
  v_readable boolean;
begin  -- changes
  perform from public.agent_session_info
    where user_id = p_user_id and session_id = p_session_id for no key update;
  if not found then
    return null;
  end if;
  select id, content into v_id, v_content from public.agent_sessions
    where user_id = p_user_id and session_id = p_session_id
    order by id desc
    limit 1;
  if not found then
    return null;
  end if;
  begin
    v_readable := json_typeof(v_content::json) = 'object';
  exception when others then  -- only the cast can fail here
    v_readable := false;
  end;
  if not v_readable then
    return '';
  end if;
  delete from public.agent_sessions where user_id = p_user_id and session_id = p_session_id and id = v_id;
  -- Versions before left rows that were not counted.
  update public.agent_session_info
    set item_count = greatest(item_count - 1, 0), updated_at = clock_timestamp()
    where user_id = p_user_id and session_id = p_session_id;
  return v_content;
end
$$;
comment on function public.agent_session_pop_object is
  'Removes and returns the newest item (null: there is none) if it is a JSON object. Otherwise nothing changes: an empty text.';

create function public.agent_session_take(p_user_id text, p_session_id text, p_expected text[]) returns boolean
language plpgsql set search_path = '' as $$
declare
  v_ids bigint[];
  v_contents text[];
begin  -- changes
  perform from public.agent_session_info
    where user_id = p_user_id and session_id = p_session_id for no key update;
  if not found then
    return false;
  end if;
  select array_agg(id order by id), coalesce(array_agg(content order by id), '{}') into v_ids, v_contents
    from (
      select id, content from public.agent_sessions
      where user_id = p_user_id and session_id = p_session_id
      order by id desc
      limit (select cardinality(p_expected))
    ) as tail;
  if v_contents <> p_expected then
    return false;
  end if;
  delete from public.agent_sessions where user_id = p_user_id and session_id = p_session_id and id = v_ids[1];
  if not found then
    return false;  -- nothing was expected
  end if;
  update public.agent_session_info
    set item_count = greatest(item_count - 1, 0), updated_at = clock_timestamp()
    where user_id = p_user_id and session_id = p_session_id;
  return true;
end
$$;
comment on function public.agent_session_take is
  'Removes the first of the items p_expected, oldest first, if they still are the newest ones. The others keep their id, role '
  'and time.';
