-- What encryption needs of a database: a text that tells which keys are the right ones, and a way to write what is stored
-- in another form without touching anything else. Programs of the version before do without both.

create table public.agent_session_canary (
  user_id text not null default '',
  text text not null,
  constraint agent_session_canary_key primary key (user_id)
);

comment on table public.agent_session_canary is 'A text sealed with the keys that sessions are sealed with; no row where nothing is encrypted.';
comment on column public.agent_session_canary.user_id is 'Empty: the app''s own. Where users sign in to the database, each has one as well.';

-- Whoever may use the sessions may use this too: an app's role needs no new rights after an upgrade.
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
    execute format('grant %s on public.agent_session_canary to %s', v_right, v_role);
  end loop;
end
$$;

create function public.agent_session_canary(p_user_id text, p_kept text, p_text text) returns text
language plpgsql set search_path = '' as $$
begin
  if p_kept is null and p_text is not null then
    -- Looked for first, so that opening a store that has one writes nothing.
    if not exists (select from public.agent_session_canary where user_id = p_user_id) then
      insert into public.agent_session_canary (user_id, text) values (p_user_id, p_text)
      on conflict (user_id) do nothing;
    end if;
  elsif p_kept is not null then
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
  return (select text from public.agent_session_canary where user_id = p_user_id);
end
$$;
comment on function public.agent_session_canary is
  'Puts p_text in the place of p_kept (null: of nothing, or nothing in its place) if that is what is kept; returns what is kept then.';

create function public.agent_session_rewrite(
  p_user_id text, p_session_id text, p_first bigint, p_expected text[], p_contents text[],
  p_expected_title text, p_title text, p_expected_metadata jsonb, p_metadata jsonb
) returns boolean
language plpgsql set search_path = '' as $$
declare
  v_ids bigint[];
  v_contents text[];
begin
  perform from public.agent_session_info
    where user_id = p_user_id and session_id = p_session_id
      and title is not distinct from p_expected_title and metadata = p_expected_metadata
    for no key update;
  if not found then
    return false;
  end if;
  select coalesce(array_agg(id order by id), '{}'), coalesce(array_agg(content order by id), '{}')
    into v_ids, v_contents
    from (
      select id, content from public.agent_sessions
      where user_id = p_user_id and session_id = p_session_id
      order by id
      offset p_first
      limit cardinality(p_expected)
    ) as part;
  if v_contents <> p_expected then
    return false;
  end if;
  update public.agent_sessions as item set content = new.content
    from unnest(v_ids, p_contents) as new (id, content)
    where item.user_id = p_user_id and item.session_id = p_session_id and item.id = new.id
      and item.content <> new.content;
  update public.agent_session_info set title = coalesce(p_title, title), metadata = p_metadata
    where user_id = p_user_id and session_id = p_session_id;
  return true;
end
$$;
comment on function public.agent_session_rewrite is
  'Puts other texts in the place of title, metadata and the items after the first p_first, if they still are what is expected. '
  'Nothing else changes: no time, no order, no batch.';

create or replace function public.agent_session_schema_version() returns bigint[]
language sql stable set search_path = '' as $$
  -- Not immutable: then a plan made for one role would hold the answer for the next, allowed or not.
  select array[20261123000002, 20261123000001]::bigint[]
$$;
