-- Conversations of agents: one row per item, one row per session.
--
-- If the table of the original example is already there, with the columns (id, session_id, role, content, created_at),
-- its rows become items {"role": …, "content": …} in the same order. Any other table of that name stops the migration.

do $$
declare
  v_columns text;
begin
  if to_regclass('public.agent_session_info') is not null then
    raise exception 'table public.agent_session_info is already there, but the history of migrations does not know it'
      using hint = 'If another tool applied this migration, record version 20261123000001 in the history as well.';
  end if;
  if to_regclass('public.agent_sessions') is null then
    return;
  end if;

  select string_agg(attname || ' ' || case
           when atttypid in ('int4'::regtype, 'int8'::regtype) then 'int'
           when atttypid in ('text'::regtype, 'varchar'::regtype) then 'text'
           when atttypid in ('timestamp'::regtype, 'timestamptz'::regtype) then 'time'
           else atttypid::regtype::text end, ', ' order by attname)
  into v_columns
  from pg_catalog.pg_attribute
  where attrelid = 'public.agent_sessions'::regclass and attnum > 0 and not attisdropped;

  if v_columns is distinct from 'content text, created_at time, id int, role text, session_id text' then
    raise exception 'table public.agent_sessions belongs to something else (its columns: %)', v_columns
      using hint = case when to_regclass('public.agent_messages') is not null
        then 'It looks like the table of the SDK''s SQLAlchemySession. Rename it, or use another database for this app; '
          'then `sessions import --from <address of this database>` brings its conversations in.'
        else 'Rename it, or use another database for this app.' end;
  end if;
  alter table public.agent_sessions rename to agent_sessions_to_adopt;
end
$$;

-- ── Tables ──────────────────────────────────────────────────────────────────

create table public.agent_sessions (
  id bigint generated always as identity,
  session_id text not null,
  role text,
  content text not null,
  created_at timestamptz not null default now(),
  user_id text not null default '',
  batch_id uuid,
  constraint agent_sessions_key primary key (user_id, session_id, id)
)
-- An item is read whole or not at all: keep it in the page where it fits, and never spend time on compressing it.
with (toast_tuple_target = 8160);
alter table public.agent_sessions alter column content set storage external;

-- Finds a batch that was sent twice; only the first row of a batch carries its id.
create unique index agent_sessions_batch on public.agent_sessions (batch_id) where batch_id is not null;

comment on table public.agent_sessions is 'Items of agent conversations, one row each. Within a session, id order is commit order.';
comment on column public.agent_sessions.role is 'Role of the item where it has one; for people who query. The app reads content only.';
comment on column public.agent_sessions.content is 'The whole item as JSON text, exactly as the app wrote it. Never jsonb: that rewrites numbers and key order.';
comment on column public.agent_sessions.batch_id is 'Set on the first row of each append, so that a repeated append is recognised.';

create table public.agent_session_info (
  user_id text not null default '',
  session_id text not null,
  title text,
  metadata jsonb not null default '{}',
  item_count bigint not null default 0,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  recent_batches uuid[] not null default '{}',
  constraint agent_session_info_key primary key (user_id, session_id)
);
create index agent_session_info_user on public.agent_session_info (user_id, updated_at desc, session_id desc);
create index agent_session_info_updated on public.agent_session_info (updated_at desc, user_id desc, session_id desc);

comment on table public.agent_session_info is 'One row per session. Writers of a session queue on this row, so their batches never interleave.';
comment on column public.agent_session_info.recent_batches is 'Batches whose first row was removed lately (pop, clear): a late repeat must not bring them back.';

-- ── The original example's rows ─────────────────────────────────────────────

do $$
declare
  v_before bigint;
  v_after bigint;
begin
  if to_regclass('public.agent_sessions_to_adopt') is null then
    return;
  end if;
  lock table public.agent_sessions_to_adopt in access exclusive mode;
  insert into public.agent_sessions (id, session_id, role, content, created_at) overriding system value
    select id, coalesce(nullif(session_id, ''), '(none)'), coalesce(role, 'user'),
           json_build_object('role', coalesce(role, 'user'), 'content', coalesce(content, ''))::text,
           coalesce(created_at::timestamptz, now())
    from public.agent_sessions_to_adopt order by id;
  insert into public.agent_session_info (session_id, title, item_count, created_at, updated_at)
    select s.session_id, left((array_agg(s.content::json ->> 'content' order by s.id) filter (where s.role = 'user'))[1], 80),
           count(*), min(s.created_at), max(s.created_at)
    from public.agent_sessions s group by s.session_id;
  perform setval(pg_get_serial_sequence('public.agent_sessions', 'id'), max(id)) from public.agent_sessions;
  select count(*) into v_before from public.agent_sessions_to_adopt;
  select count(*) into v_after from public.agent_sessions;
  if v_before <> v_after then
    raise exception 'only % of % rows were adopted', v_after, v_before;
  end if;
  drop table public.agent_sessions_to_adopt;
end
$$;

-- ── Functions: one round trip for each operation of SessionStore ────────────
-- A signature never changes: a new behaviour becomes a new function with the suffix _v2.

create function public.agent_session_append(
  p_user_id text, p_session_id text, p_batch_id uuid, p_contents text[], p_roles text[], p_title text
) returns boolean
language plpgsql set search_path = '' as $$
begin
  -- The first part locks the session's row, or waits for it; only then does the second part take its ids.
  with session as (
    insert into public.agent_session_info as info (user_id, session_id, title, item_count, updated_at)
    values (p_user_id, p_session_id, p_title, cardinality(p_contents), clock_timestamp())
    on conflict (user_id, session_id) do update
      set item_count = info.item_count + excluded.item_count,
          updated_at = clock_timestamp(),
          title = coalesce(info.title, excluded.title)
      where p_batch_id <> all (info.recent_batches)
    returning updated_at
  )
  insert into public.agent_sessions (user_id, session_id, role, content, created_at, batch_id)
    -- The shortest array is filled up with nulls: the first row gets the batch id.
    select p_user_id, p_session_id, item.role, item.content, session.updated_at, item.batch_id
    from session, unnest(p_contents, p_roles, array[p_batch_id]) as item (content, role, batch_id)
    where item.content is not null;  -- no items: only the session itself comes into being
  return found;
end
$$;
comment on function public.agent_session_append is
  'Stores all items of a batch after everything stored before, or none. A batch that is there already is refused as unique_violation '
  'on agent_sessions_batch; one whose first item was removed again returns false. Either way it was stored once.';

create function public.agent_session_tail(p_user_id text, p_session_id text, p_limit bigint) returns text[]
language plpgsql stable set search_path = '' as $$
begin
  -- One array, not rows: a REST layer with a row limit would cut a long history short without saying so.
  return array(
    select content from public.agent_sessions
    where user_id = p_user_id and session_id = p_session_id
    order by id desc
    limit (select p_limit)  -- a number would make the planner sort where it takes a history for short
  );
end
$$;
comment on function public.agent_session_tail is 'The newest p_limit items (null: all), newest first.';

create function public.agent_session_pop(p_user_id text, p_session_id text) returns text
language plpgsql set search_path = '' as $$
declare
  v_content text;
  v_batch uuid;
begin
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
    returning content, batch_id into v_content, v_batch;
  if v_batch is not null then
    update public.agent_session_info set recent_batches = (v_batch || recent_batches)[1:16]
      where user_id = p_user_id and session_id = p_session_id;
  end if;
  return v_content;
end
$$;
comment on function public.agent_session_pop is 'Removes and returns the newest item; null if there is none. Two callers never get the same one.';

create function public.agent_session_clear(p_user_id text, p_session_id text) returns void
language plpgsql set search_path = '' as $$
declare
  v_batches uuid[];
begin
  perform from public.agent_session_info
    where user_id = p_user_id and session_id = p_session_id for no key update;
  v_batches := array(
    select batch_id from public.agent_sessions
    where user_id = p_user_id and session_id = p_session_id and batch_id is not null
    order by id desc
    limit 16
  );
  delete from public.agent_sessions where user_id = p_user_id and session_id = p_session_id;
  update public.agent_session_info
    set item_count = 0, updated_at = clock_timestamp(), recent_batches = (v_batches || recent_batches)[1:16]
    where user_id = p_user_id and session_id = p_session_id;
end
$$;
comment on function public.agent_session_clear is 'Removes all items of a session; its title and metadata stay.';

create function public.agent_session_replace_tail(
  p_user_id text, p_session_id text, p_expected text[], p_batch_id uuid, p_contents text[], p_roles text[], p_title text
) returns boolean
language plpgsql set search_path = '' as $$
declare
  v_ids bigint[];
  v_contents text[];
  v_batches uuid[];
begin
  perform from public.agent_session_info
    where user_id = p_user_id and session_id = p_session_id for no key update;
  if exists (select from public.agent_sessions where batch_id = p_batch_id) then
    return true;
  end if;
  if p_expected is null then
    perform public.agent_session_clear(p_user_id, p_session_id);
  else
    select coalesce(array_agg(id), '{}'), coalesce(array_agg(content order by id), '{}'),
           coalesce(array_agg(batch_id) filter (where batch_id is not null), '{}')
      into v_ids, v_contents, v_batches
      from (
        select id, content, batch_id from public.agent_sessions
        where user_id = p_user_id and session_id = p_session_id
        order by id desc
        limit (select cardinality(p_expected))
      ) as tail;
    if v_contents <> p_expected then
      return false;
    end if;
    delete from public.agent_sessions
      where user_id = p_user_id and session_id = p_session_id and id = any (v_ids);
    update public.agent_session_info
      set item_count = item_count - cardinality(v_ids),
          updated_at = clock_timestamp(),
          recent_batches = (v_batches || recent_batches)[1:16]
      where user_id = p_user_id and session_id = p_session_id;
  end if;
  if cardinality(p_contents) > 0 then
    perform public.agent_session_append(p_user_id, p_session_id, p_batch_id, p_contents, p_roles, p_title);
  end if;
  return true;
end
$$;
comment on function public.agent_session_replace_tail is
  'Puts a batch in the place of the newest items if they still are p_expected, oldest first (null: all items, whatever they are).';

create function public.agent_session_find(p_user_id text, p_session_id text) returns json
language plpgsql stable set search_path = '' as $$
begin
  return (
    select row_to_json(session) from (
      select user_id, session_id, title, item_count, created_at, updated_at, metadata
      from public.agent_session_info
      where user_id = p_user_id and session_id = p_session_id
    ) as session
  );
end
$$;
comment on function public.agent_session_find is 'One session without its items; null if there is none.';

create function public.agent_session_list(
  p_user_id text, p_limit bigint, p_before timestamptz, p_before_user_id text, p_before_session_id text
) returns json
language plpgsql stable set search_path = '' as $$
declare
  -- The last session of the page before; without one, what comes before everything. In variables: with `or` and with
  -- coalesce (behind a policy) the index would be read from its beginning.
  v_before timestamptz := coalesce(p_before, 'infinity');
  v_before_user_id text := coalesce(p_before_user_id, '');
  v_before_session_id text := coalesce(p_before_session_id, '');
begin
  -- Two statements, so that each has the index it needs.
  if p_user_id is null then
    return (
      select coalesce(json_agg(page), '[]') from (
        select user_id, session_id, title, item_count, created_at, updated_at, metadata
        from public.agent_session_info
        where (updated_at, user_id, session_id) < (v_before, v_before_user_id, v_before_session_id)
        order by updated_at desc, user_id desc, session_id desc
        limit (select p_limit)
      ) as page
    );
  end if;
  return (
    select coalesce(json_agg(page), '[]') from (
      select user_id, session_id, title, item_count, created_at, updated_at, metadata
      from public.agent_session_info
      where user_id = p_user_id and (updated_at, session_id) < (v_before, v_before_session_id)
      order by updated_at desc, session_id desc
      limit (select p_limit)
    ) as page
  );
end
$$;
comment on function public.agent_session_list is 'Sessions of a user (null: of everybody), the last written first, as one JSON array.';

create function public.agent_session_update(p_user_id text, p_session_id text, p_title text, p_metadata jsonb) returns boolean
language plpgsql set search_path = '' as $$
begin
  update public.agent_session_info
    set title = coalesce(p_title, title), metadata = coalesce(p_metadata, metadata)
    where user_id = p_user_id and session_id = p_session_id;
  return found;
end
$$;
comment on function public.agent_session_update is 'Sets title and metadata; null leaves one as it is. False if there is no such session.';

create function public.agent_session_delete(p_user_id text, p_session_id text) returns boolean
language plpgsql set search_path = '' as $$
begin
  delete from public.agent_session_info where user_id = p_user_id and session_id = p_session_id;
  if not found then
    return false;
  end if;
  delete from public.agent_sessions where user_id = p_user_id and session_id = p_session_id;
  return true;
end
$$;
comment on function public.agent_session_delete is 'Removes a session and its items. False if there was none.';

create function public.agent_session_delete_user(p_user_id text) returns bigint
language plpgsql set search_path = '' as $$
declare
  v_sessions text[];
begin
  with gone as (delete from public.agent_session_info where user_id = p_user_id returning session_id)
    select coalesce(array_agg(session_id), '{}') into v_sessions from gone;
  delete from public.agent_sessions where user_id = p_user_id and session_id = any (v_sessions);
  return cardinality(v_sessions);
end
$$;
comment on function public.agent_session_delete_user is 'Removes all sessions of a user and their items; returns how many sessions there were.';

create function public.agent_session_prune(p_older_than timestamptz, p_limit bigint) returns bigint
language plpgsql set search_path = '' as $$
declare
  v_users text[];
  v_sessions text[];
begin
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
  delete from public.agent_sessions as item using unnest(v_users, v_sessions) as old (user_id, session_id)
    where item.user_id = old.user_id and item.session_id = old.session_id;
  return cardinality(v_sessions);
end
$$;
comment on function public.agent_session_prune is 'Removes up to p_limit sessions last written before p_older_than, with their items; returns how many.';

create function public.agent_session_schema_version() returns bigint[]
language sql stable set search_path = '' as $$
  -- Not immutable: then a plan made for one role would hold the answer for the next, allowed or not.
  select array[20261123000001, 20261123000001]::bigint[]
$$;
comment on function public.agent_session_schema_version is
  'The newest migration, and the oldest one whose programs may still use this schema.';
