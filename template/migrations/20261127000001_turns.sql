-- Leases (one run at a time), turns (what is noted of a run beside its items), pages and copies of sessions.
--
-- Both tables refer to the session's row, so they go with it, whoever deletes it.
--
-- Cost: new tables and functions only; writers wait for a moment. Programs of the versions before may run on: they know no lease, so their
-- runs are not kept apart from others, as before.

create table public.agent_session_leases (
  user_id text not null,
  session_id text not null,
  token uuid not null,
  until timestamptz not null,
  began boolean not null,
  constraint agent_session_leases_key primary key (user_id, session_id),
  constraint agent_session_leases_of_session foreign key (user_id, session_id)
    references public.agent_session_info on delete cascade
)
-- A row comes and goes with every turn.
with (autovacuum_vacuum_scale_factor = 0.02, fillfactor = 50);
comment on table public.agent_session_leases is 'Which run a session belongs to at the moment. Only runs that take a lease exclude each other.';
comment on column public.agent_session_leases.until is 'From then on others may take it; until one does, it still is a lease.';
comment on column public.agent_session_leases.began is 'The session began with it, and goes with it if nothing came in.';

create table public.agent_session_turns (
  id bigint generated always as identity,
  user_id text not null,
  session_id text not null,
  turn_id text not null,
  request_id text,
  status text not null,
  content text not null,
  first_id bigint,
  last_id bigint,
  updated_at timestamptz not null default now(),
  constraint agent_session_turns_key primary key (user_id, session_id, id),
  constraint agent_session_turns_turn unique (user_id, session_id, turn_id),
  constraint agent_session_turns_of_session foreign key (user_id, session_id)
    references public.agent_session_info on delete cascade
);
alter table public.agent_session_turns alter column content set storage external;
create index agent_session_turns_updated on public.agent_session_turns (updated_at);
comment on table public.agent_session_turns is
  'One row per turn: what the app notes of it, the newest hundred of a session, each for thirty days. Not for signed-in users.';
comment on column public.agent_session_turns.first_id is 'Its items are the rows of agent_sessions from here to last_id; null: none.';

-- Roles that may use the sessions may use these tables too: an app's role needs no new rights after an upgrade.
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
    execute format('grant %s on public.agent_session_leases, public.agent_session_turns to %s', v_right, v_role);
  end loop;
end
$$;

-- ── Leases ──────────────────────────────────────────────────────────────────
-- The order of locks, with these tables: 1. the batch, 2. the session's row of agent_session_info, 3. agent_sessions,
-- agent_session_leases and agent_session_turns, which only the holder of 2 writes. (agent_session_renew writes one row and
-- holds nothing else; agent_session_forget waits for nobody.)

create function public.agent_session_lease(
  p_user_id text, p_session_id text, p_token uuid, p_seconds double precision, p_limit bigint, p_request_id text
) returns text[]
language plpgsql set search_path = '' as $$
declare
  v_began boolean := false;
begin  -- changes
  perform from public.agent_session_info
    where user_id = p_user_id and session_id = p_session_id for no key update;
  if not found then
    insert into public.agent_session_info as info (user_id, session_id) values (p_user_id, p_session_id)
      -- It may have been in the making elsewhere: then this waited for it.
      on conflict (user_id, session_id) do update set item_count = info.item_count
      returning created_at = now() into v_began;
  end if;
  insert into public.agent_session_leases as lease (user_id, session_id, token, until, began)
    values (p_user_id, p_session_id, p_token, clock_timestamp() + make_interval(secs => p_seconds), v_began)
    on conflict (user_id, session_id) do update set token = excluded.token, until = excluded.until
      where lease.token = excluded.token or lease.until <= clock_timestamp();
  if not found then
    return null;
  end if;
  select lease.began and info.item_count = 0 into v_began
    from public.agent_session_leases as lease
    join public.agent_session_info as info on info.user_id = lease.user_id and info.session_id = lease.session_id
    where lease.user_id = p_user_id and lease.session_id = p_session_id;
  return array[
    case when v_began then 'began' end,
    (select to_json(turn)::text from public.agent_session_turns as turn
      where user_id = p_user_id and session_id = p_session_id order by id desc limit 1),
    (select to_json(turn)::text from public.agent_session_turns as turn
      where user_id = p_user_id and session_id = p_session_id and request_id = p_request_id order by id desc limit 1)
  ] || array(
    select content from public.agent_sessions
    where user_id = p_user_id and session_id = p_session_id
    order by id desc
    limit (select p_limit)
  );
end
$$;
comment on function public.agent_session_lease is
  'Takes a session for one run and reads it: null while another one has it, otherwise ''began'' (or null, if the session was '
  'there), the newest turn and the one of this request as JSON (or null), and the newest p_limit items (null: all), newest first.';

create function public.agent_session_renew(p_user_id text, p_session_id text, p_token uuid, p_seconds double precision)
returns boolean
language plpgsql set search_path = '' as $$
begin  -- changes
  update public.agent_session_leases set until = clock_timestamp() + make_interval(secs => p_seconds)
    where user_id = p_user_id and session_id = p_session_id and token = p_token;
  return found;
end
$$;
comment on function public.agent_session_renew is 'Keeps a lease for so many seconds from now; false if it is lost.';

create function public.agent_session_release(p_user_id text, p_session_id text, p_token uuid) returns boolean
language plpgsql set search_path = '' as $$
declare
  v_began boolean;
begin  -- changes
  perform from public.agent_session_info
    where user_id = p_user_id and session_id = p_session_id for update;
  if not found then
    return false;
  end if;
  delete from public.agent_session_leases
    where user_id = p_user_id and session_id = p_session_id and token = coalesce(p_token, token)
    returning began into v_began;
  if not found then
    return false;
  end if;
  if v_began then
    delete from public.agent_session_info as info
      where user_id = p_user_id and session_id = p_session_id and item_count = 0 and title is null and metadata = '{}'
        and not exists (
          select from public.agent_sessions as item where item.user_id = p_user_id and item.session_id = p_session_id
        )
        and not exists (
          select from public.agent_session_turns as turn where turn.user_id = p_user_id and turn.session_id = p_session_id
        );
  end if;
  return true;
end
$$;
comment on function public.agent_session_release is
  'Gives a lease back (null: whoever has it); false if there was none. A session that began with it goes if nothing came in.';

-- ── Turns ───────────────────────────────────────────────────────────────────

create function public.agent_session_append_v2(
  p_user_id text, p_session_id text, p_batch_id uuid, p_contents text[], p_roles text[], p_title text,
  p_lease uuid, p_release boolean, p_turn_id text, p_request_id text, p_status text, p_content text
) returns boolean
language plpgsql set search_path = '' as $$
declare
  v_first bigint;
  v_last bigint;
begin  -- changes
  insert into public.agent_session_batches (user_id, session_id, batch_id)
    values (p_user_id, p_session_id, p_batch_id)
    on conflict do nothing;
  if not found then
    return true;
  end if;
  perform from public.agent_session_info
    where user_id = p_user_id and session_id = p_session_id for no key update;
  -- An update of the lease, never an insert: that would bring back a session that was deleted.
  if not found or not exists (
    select from public.agent_session_leases where user_id = p_user_id and session_id = p_session_id and token = p_lease
  ) then
    delete from public.agent_session_batches
      where user_id = p_user_id and session_id = p_session_id and batch_id = p_batch_id;
    return false;
  end if;
  with stored as (
    insert into public.agent_sessions (user_id, session_id, role, content, created_at)
      select p_user_id, p_session_id, item.role, item.content, clock_timestamp()
      from unnest(p_contents, p_roles) as item (content, role)
      returning id
  )
  select min(id), max(id) into v_first, v_last from stored;
  update public.agent_session_info
    set item_count = item_count + cardinality(p_contents),
        updated_at = clock_timestamp(),
        title = coalesce(title, p_title)
    where user_id = p_user_id and session_id = p_session_id;
  if p_turn_id is not null then
    insert into public.agent_session_turns as turn
        (user_id, session_id, turn_id, request_id, status, content, first_id, last_id, updated_at)
      values (p_user_id, p_session_id, p_turn_id, p_request_id, p_status, p_content, v_first, v_last, clock_timestamp())
      on conflict (user_id, session_id, turn_id) do update
        set request_id = excluded.request_id, status = excluded.status, content = excluded.content,
            first_id = coalesce(turn.first_id, excluded.first_id), last_id = coalesce(excluded.last_id, turn.last_id),
            updated_at = excluded.updated_at;
    delete from public.agent_session_turns
      where user_id = p_user_id and session_id = p_session_id and id <= (
        select id from public.agent_session_turns
        where user_id = p_user_id and session_id = p_session_id
        order by id desc
        offset 100 limit 1
      );
  end if;
  if p_release then
    delete from public.agent_session_leases where user_id = p_user_id and session_id = p_session_id;
  end if;
  if random() < 0.01 then
    perform public.agent_session_forget(200);
  end if;
  return true;
end
$$;
comment on function public.agent_session_append_v2 is
  'agent_session_append of the run that has the lease, with a note of its turn (p_turn_id null: none), and p_release gives the '
  'lease back; false if the lease is lost or the session was deleted: then nothing was stored.';

create function public.agent_session_turns(p_user_id text, p_session_id text, p_turn_id text, p_limit bigint) returns json
language plpgsql stable set search_path = '' as $$
begin
  return (
    select coalesce(json_agg(turn order by turn.id desc), '[]') from (
      select id, turn_id, request_id, status, content, first_id, last_id, updated_at
      from public.agent_session_turns
      where user_id = p_user_id and session_id = p_session_id and (p_turn_id is null or turn_id = p_turn_id)
      order by id desc
      limit (select p_limit)
    ) as turn
  );
end
$$;
comment on function public.agent_session_turns is 'The newest p_limit turns of a session, newest first; or the one with this id.';

create function public.agent_session_change_turn(
  p_user_id text, p_session_id text, p_lease uuid, p_turn_id text,
  p_expected_status text, p_expected_content text, p_status text, p_content text
) returns boolean
language plpgsql set search_path = '' as $$
begin  -- changes
  perform from public.agent_session_info
    where user_id = p_user_id and session_id = p_session_id for no key update;
  if p_lease is not null and not exists (
    select from public.agent_session_leases where user_id = p_user_id and session_id = p_session_id and token = p_lease
  ) then
    return false;
  end if;
  update public.agent_session_turns set status = p_status, content = p_content, updated_at = clock_timestamp()
    where user_id = p_user_id and session_id = p_session_id and turn_id = p_turn_id
      and (status = p_expected_status and content = p_expected_content or status = p_status and content = p_content);
  return found;
end
$$;
comment on function public.agent_session_change_turn is
  'Sets status and content of a turn if they are what is expected, or are so already; with p_lease only while that is the session''s.';

-- ── Pages and copies ────────────────────────────────────────────────────────

create function public.agent_session_page(p_user_id text, p_session_id text, p_before bigint, p_limit bigint) returns json
language plpgsql stable set search_path = '' as $$
declare
  v_before bigint := coalesce(p_before, 9223372036854775807);  -- in a variable: with `or` the index would be read in full
begin
  return (
    select coalesce(json_agg(json_build_array(id, content) order by id desc), '[]') from (
      select id, content from public.agent_sessions
      where user_id = p_user_id and session_id = p_session_id and id < v_before
      order by id desc
      limit (select p_limit)
    ) as page
  );
end
$$;
comment on function public.agent_session_page is 'The newest p_limit items before a position (null: of all), newest first, as [id, content].';

create function public.agent_session_fork(p_user_id text, p_session_id text, p_new_session_id text, p_before bigint)
returns boolean
language plpgsql set search_path = '' as $$
declare
  v_count bigint;
begin  -- changes
  -- Locks the new session alone. One statement copies, so it sees whole batches of the old one.
  insert into public.agent_session_info (user_id, session_id, title, metadata, updated_at)
    select user_id, p_new_session_id, title, metadata, clock_timestamp() from public.agent_session_info
    where user_id = p_user_id and session_id = p_session_id
    on conflict (user_id, session_id) do nothing;
  if not found then
    return false;
  end if;
  insert into public.agent_sessions (user_id, session_id, role, content, created_at)
    select user_id, p_new_session_id, role, content, created_at from public.agent_sessions
    where user_id = p_user_id and session_id = p_session_id and id < coalesce(p_before, 9223372036854775807)
    order by id;
  get diagnostics v_count = row_count;
  update public.agent_session_info set item_count = v_count
    where user_id = p_user_id and session_id = p_new_session_id;
  return true;
end
$$;
comment on function public.agent_session_fork is
  'Copies a session''s items (those before a position; null: all), title and metadata into a new one of the same user; false if '
  'that exists already, or there is nothing to copy.';

-- ── What ends with the items, and with time ─────────────────────────────────

create function public.agent_session_clear_v2(p_user_id text, p_session_id text, p_batch_id uuid) returns void
language plpgsql set search_path = '' as $$
begin  -- changes
  insert into public.agent_session_batches (user_id, session_id, batch_id)
    values (p_user_id, p_session_id, p_batch_id)
    on conflict do nothing;
  if not found then
    return;
  end if;
  update public.agent_session_info
    set item_count = 0, updated_at = clock_timestamp()
    where user_id = p_user_id and session_id = p_session_id;
  if not found then
    return;  -- it may be in the making: what is not locked is not touched
  end if;
  delete from public.agent_sessions where user_id = p_user_id and session_id = p_session_id;
  delete from public.agent_session_turns where user_id = p_user_id and session_id = p_session_id;
end
$$;
comment on function public.agent_session_clear_v2 is
  'Removes all items and turns of a session; its title and metadata stay. Repeated within an hour it changes nothing.';

create or replace function public.agent_session_forget(p_limit bigint) returns void
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
  for v_old in
    select user_id, session_id, id from public.agent_session_turns
    where updated_at < now() - interval '30 days'
    order by updated_at
    limit (select p_limit)
    for update skip locked
  loop
    delete from public.agent_session_turns
      where user_id = v_old.user_id and session_id = v_old.session_id and id = v_old.id;
  end loop;
end
$$;
comment on function public.agent_session_forget is
  'Removes up to p_limit batches that are older than an hour and turns that are older than thirty days, of all sessions, and '
  'waits for nobody. With the rights of the owner: what is of those who do not come back is tidied by others.';

create or replace function public.agent_session_schema_version() returns bigint[]
language sql stable set search_path = '' as $$
  -- Not immutable: then a plan made for one role would hold the answer for the next, allowed or not.
  select array[20261127000001, 20261123000001]::bigint[]
$$;
