// What Xen Orchestra's client sees of a pool: `node xen_orchestra.mjs SCENARIO '{"url", "user", "password", "transport", ...}'`.
//
// Each scenario connects as Xen Orchestra does (login, introspection, all records, event loop), asserts what it expects and
// prints one JSON document for the Python test that started it.

import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { createReadStream, createWriteStream } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { pipeline } from 'node:stream/promises'
import { CancelToken } from 'promise-toolbox'
import { createClient, Ref } from 'xen-api'

const WAIT_MS = 30e3

async function until(what, condition, explain = () => '') {
  const deadline = Date.now() + WAIT_MS
  for (;;) {
    const result = await condition()
    if (result) {
      return result
    }
    if (Date.now() > deadline) assert.fail(`timed out waiting until ${what} ${await explain()}`)
    await new Promise(resolve => setTimeout(resolve, 20))
  }
}

const rejects = (promise, code) =>
  promise.then(
    result => assert.fail(`${code} expected, got ${JSON.stringify(result)}`),
    error => {
      assert.equal(error.code, code, error.stack)
      return error
    }
  )

function count(xapi) {
  const counts = {}
  for (const object of Object.values(xapi.objects.all)) {
    counts[object.$type] = (counts[object.$type] ?? 0) + 1
  }
  return counts
}

const vmNamed = (xapi, name) =>
  Object.values(xapi.objects.all).find(object => object.$type === 'VM' && object.name_label === name && !object.is_a_snapshot)

const newDisk = (xapi, size) =>
  xapi.callAsync('VDI.create', {
    name_label: 'from Xen Orchestra',
    name_description: '',
    SR: xapi.pool.default_SR,
    virtual_size: size,
    type: 'user',
    sharable: false,
    read_only: false,
    other_config: {},
    xenstore_data: {},
    sm_config: {},
    tags: [],
  })

const scenarios = {
  // The collection holds every object of every class, and its links lead to each other.
  async list(xapi) {
    const counts = count(xapi)
    for (const object of Object.values(xapi.objects.all)) {
      assert.equal(xapi.getObjectByRef(object.$ref), object)
    }
    const vm = vmNamed(xapi, 'demo-01')
    assert.equal(vm.$resident_on.$type, 'host')
    assert.equal(vm.$VBDs[0].$VM, vm)
    assert.equal(vm.$VBDs[0].$VDI.$SR, xapi.pool.$default_SR)
    assert.equal(vm.$VIFs[0].$network.$type, 'network')
    assert.equal(vm.$pool, xapi.pool)
    assert.equal(xapi.getObjectByUuid(vm.uuid), vm)
    assert.deepEqual(await xapi.getRecordByUuid('VM', vm.uuid), await xapi.getRecord('VM', vm.$ref))
    return { counts, types: xapi._types, missing: xapi._types.filter(type => counts[type] === undefined) }
  },

  // Power: each step awaited through its task, its effect seen in the cache after a barrier.
  async power(xapi, { name }) {
    const vm = vmNamed(xapi, name)
    const state = async expected => assert.equal((await xapi.barrier(vm.$ref)).power_state, expected)
    await state('Halted')
    assert.equal(await xapi.callAsync('VM.start', vm.$ref, false, false), '')
    await state('Running')
    await rejects(xapi.callAsync('VM.start', vm.$ref, false, false), 'VM_BAD_POWER_STATE')
    await until('the guest reports', () => xapi.getObjectByRef(vm.$ref).$guest_metrics?.PV_drivers_detected)
    await vm.$callAsync('clean_reboot')
    await state('Running')
    await vm.$callAsync('hard_reboot')
    await vm.$callAsync('pause')
    await state('Paused')
    await vm.$callAsync('unpause')
    await vm.$callAsync('suspend')
    await state('Suspended')
    await vm.$callAsync('resume', false, false)
    await until('the guest reports', () => xapi.getObjectByRef(vm.$ref).$guest_metrics?.PV_drivers_detected)
    await vm.$callAsync('clean_shutdown')
    await state('Halted')
    const ref = await xapi.callAsync('VM.snapshot', vm.$ref, 'before')
    const snapshot = await xapi.barrier(ref)
    assert.equal(snapshot.$snapshot_of.$ref, vm.$ref)
    assert.deepEqual(
      xapi.getObjectByRef(vm.$ref).$snapshots.map(object => object.name_label),
      ['before']
    )
    await xapi.callAsync('VM.revert', ref)
    await xapi.callAsync('VM.destroy', ref)
    const clone = await xapi.barrier(await xapi.callAsync('VM.clone', vm.$ref, 'twin'))
    assert.equal(clone.name_label, 'twin')
    for (const { $VDI } of clone.$VBDs) {
      if ($VDI !== undefined) await $VDI.$callAsync('destroy')
    }
    await clone.$callAsync('destroy')
    await xapi.barrier()
    assert.equal(xapi.getObjectByRef(ref, null), null)
    assert.equal(xapi.getObjectByRef(clone.$ref, null), null)
    return {}
  },

  // Setters and the helpers of wrapped records.
  async fields(xapi, { name }) {
    let vm = vmNamed(xapi, name)
    await vm.set_name_description('seen by Xen Orchestra: <&> "ünïcode" 𝄞')
    await vm.update_other_config('xo:key', 'first')
    await vm.update_other_config('xo:key', 'second')
    await vm.update_other_config({ 'xo:a': '1', 'xo:b': '2' })
    await vm.update_other_config('xo:a', null)
    await vm.$call('add_tags', 'blue')
    await vm.add_tags('red')
    await vm.remove_tags('blue')
    await xapi.setField('VM', vm.$ref, 'memory_static_min', 16 * 1024 * 1024)
    vm = await xapi.barrier(vm.$ref)
    assert.equal(vm.name_description, 'seen by Xen Orchestra: <&> "ünïcode" 𝄞')
    assert.equal(vm.other_config['xo:key'], 'second')
    assert.equal(vm.other_config['xo:a'], undefined)
    assert.equal(vm.other_config['xo:b'], '2')
    assert.deepEqual(vm.tags, ['red'])
    assert.equal(Number(vm.memory_static_min), 16 * 1024 * 1024)
    await rejects(xapi.call('VM.nonsense', vm.$ref), 'MESSAGE_METHOD_UNKNOWN')
    await rejects(xapi.call('VM.get_record', Ref.EMPTY), 'HANDLE_INVALID')
    assert(Number(await xapi.getField('VM', vm.$ref, 'VCPUs_max')) >= 1)
    assert.equal(await xapi.call('VM.get_is_a_template', vm.$ref), false)
    return {}
  },

  // A disk goes in from memory, from a stream of known length, from one of unknown length, and comes out again.
  async disk(xapi, { file, out, size, format }) {
    const content = await readFile(file)
    const bodies = [() => content, () => Object.assign(createReadStream(file), { length: content.length })]
    if (format === 'raw') bodies.push(() => createReadStream(file))
    const digests = []
    for (const body of bodies) {
      const vdi = await newDisk(xapi, size)
      await xapi.putResource(body(), '/import_raw_vdi/', { query: { format, vdi }, task: xapi.createTask('import') })
      const query = { format: 'raw', vdi }
      const response = await xapi.getResource('/export_raw_vdi/', { query, task: xapi.createTask('export') })
      const hash = createHash('sha256')
      await pipeline(response.body, async function* (chunks) {
        for await (const chunk of chunks) {
          hash.update(chunk)
          yield chunk
        }
      }, createWriteStream(out))
      await response.task
      digests.push(hash.digest('hex'))
      await xapi.callAsync('VDI.destroy', vdi)
    }
    return { digests }
  },

  // A disk made from a file comes out as VHD.
  async export(xapi, { file, vhd, size }) {
    const vdi = await newDisk(xapi, size)
    await xapi.putResource(await readFile(file), '/import_raw_vdi/', { query: { format: 'raw', vdi } })
    const response = await xapi.getResource('/export_raw_vdi/', { query: { format: 'vhd', vdi } })
    assert.equal(response.headers['content-type'], 'application/vhd')
    await pipeline(response.body, createWriteStream(vhd))
    await response.task
    await xapi.callAsync('VDI.destroy', vdi)
    return {}
  },

  // Events of the collection: an object appears, changes, disappears.
  async events(xapi) {
    const seen = []
    for (const kind of ['add', 'update', 'remove']) {
      xapi.objects.on(kind, objects => {
        for (const [id, object] of Object.entries(objects)) {
          seen.push({ kind, id, name: object?.name_label })
        }
      })
    }
    const watched = { name_label: 'watched', name_description: '', other_config: {}, MTU: 1500, tags: [] }
    const network = await xapi.call('network.create', watched)
    const { uuid } = await xapi.barrier(network)
    await xapi.call('network.set_name_label', network, 'renamed')
    await xapi.barrier(network)
    await xapi.call('network.destroy', network)
    await xapi.barrier()
    await until('the removal is told', () => seen.some(event => event.kind === 'remove' && event.id === uuid))
    const mine = seen.filter(event => event.id === uuid).map(({ kind, name }) => `${kind} ${name}`)
    assert.deepEqual(mine.slice(0, 1), ['add watched'])
    assert(mine.includes('update renamed'), JSON.stringify(mine))
    return {}
  },

  // Tasks: awaited before and after their end, failing, cancelled, made by the client.
  async tasks(xapi, { name }) {
    const vm = vmNamed(xapi, name)
    // The client does not wait for the removal of its last task: one that ended just before may have left it.
    const others = new Set(Object.keys(await xapi.call('task.get_all_records')))
    await rejects(xapi.call('Async.VM.get_uuid', vm.$ref), 'Fault')
    const early = await xapi.call('Async.VM.assert_can_boot_here', vm.$ref, xapi.pool.master)
    assert.equal(await xapi.watchTask(early), '')
    await xapi.barrier()
    assert.equal(await xapi.watchTask(early), '')
    await xapi.call('task.destroy', early)
    const failure = await rejects(xapi.callAsync('VM.unpause', vm.$ref), 'VM_BAD_POWER_STATE')
    assert.deepEqual(failure.params.slice(0, 1), [vm.$ref])

    const own = await xapi.call('task.create', 'mine', 'by hand')
    const watched = xapi.watchTask(own)
    await xapi.call('task.set_progress', own, 0.5)
    await xapi.call('task.set_status', own, 'success')
    await watched
    await xapi.call('task.destroy', own)

    const gone = await xapi.call('task.create', 'gone', '')
    await xapi.barrier(gone)
    // It may learn of the end, or only that the task is gone.
    const settled = xapi.watchTask(gone).catch(error => assert.match(error.message, /destroyed before completion/))
    await xapi.call('task.set_status', gone, 'success')
    await xapi.call('task.destroy', gone)
    await settled

    await xapi.callAsync('VM.start', vm.$ref, false, false)
    await until('the guest reports', () => xapi.getObjectByRef(vm.$ref).$guest_metrics?.PV_drivers_detected)
    const { cancel, token } = CancelToken.source()
    const pending = xapi.callAsync(token, 'VM.clean_shutdown', vm.$ref)
    await until('the shutdown is under way', async () => {
      await xapi.barrier()
      return Object.values(xapi.objects.all).some(
        object => object.$type === 'task' && object.name_label === 'Async.VM.clean_shutdown' && object.allowed_operations.includes('cancel')
      )
    })
    cancel()
    const outcome = await pending.then(
      result => ({ result }),
      error => ({ name: error.name, message: error.message, code: error.code })
    )
    await xapi.callAsync('VM.hard_shutdown', vm.$ref)
    const left = async () =>
      Object.entries(await xapi.call('task.get_all_records')).filter(
        ([ref, { name_label }]) => name_label.startsWith('Async.') && !others.has(ref)
      )
    await until('no task is left', async () => (await left()).length === 0, async () => JSON.stringify(await left()))
    return { outcome }
  },

  // The toolstack restarts under the client: it logs in again, refetches, and goes on.
  async restart(xapi, { control }) {
    const before = count(xapi)
    const orphan = await xapi.call('task.create', 'lost in the restart', '')
    await xapi.barrier(orphan)
    const answer = await fetch(`${control}/simulator/xapi`, {
      method: 'POST',
      body: JSON.stringify({ action: 'restart', downtime_s: 0.1 }),
    })
    assert.equal(answer.status, 200)
    await until('the pool answers again', () => xapi.call('host.get_all').catch(() => undefined))
    await until('the task is forgotten', () => xapi.getObjectByRef(orphan, null) === null)
    await xapi.barrier()
    return { before, after: count(xapi) }
  },
}

const [, , scenario, json] = process.argv
const options = JSON.parse(json)
const warnings = []
console.warn = (...args) => warnings.push(args.map(arg => (arg instanceof Error ? arg.stack : String(arg))).join(' '))
const xapi = createClient({
  url: options.url,
  auth: { user: options.user, password: options.password },
  transport: options.transport,
  allowUnauthorized: true,
  debounce: 20,
  eventPollDelay: 200,
})
await xapi.connect()
await xapi.objectsFetched
const result = await scenarios[scenario](xapi, options)
if (scenario !== 'restart') {
  assert.equal(xapi.watchEventsError, undefined)
}
await xapi.disconnect()
process.stdout.write(JSON.stringify({ ...result, warnings }))
// The client does not wait for its logout, and its pooled connections would keep the process for seconds.
setTimeout(() => process.exit(), 300)
