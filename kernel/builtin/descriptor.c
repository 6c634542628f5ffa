// SPDX-License-Identifier: GPL-2.0-only
/* The descriptor as a file: read, write, poll, fdinfo, release. */
#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/poll.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/uio.h>
#include "context.h"

static bool readable(struct mutex_proxy_context *context)
{
	bool is;

	spin_lock_bh(&context->lock);
	is = mutex_proxy_context_readable(context);
	spin_unlock_bh(&context->lock);
	return is;
}

/* With context->reading held: the snapshot, or 0 when another reader was faster. */
static ssize_t read_snapshot(struct mutex_proxy_context *context, struct iov_iter *to)
{
	ssize_t length;
	char *text;
	u64 seen;

	/* Taken before the snapshot: what changes while it is made is shown once more. */
	spin_lock_bh(&context->lock);
	seen = mutex_proxy_context_readable(context) ? context->changes : 0;
	spin_unlock_bh(&context->lock);
	if (!seen)
		return 0;
	text = kvmalloc(MUTEX_PROXY_SNAPSHOT_MAX, GFP_KERNEL);
	if (!text)
		return -ENOMEM;
	length = mutex_proxy_snapshot(context, text, MUTEX_PROXY_SNAPSHOT_MAX);
	if (iov_iter_count(to) < length)
		length = -EINVAL;
	else if (copy_to_iter(text, length, to) != length)
		length = -EFAULT;
	else
		mutex_proxy_context_seen(context, seen);
	kvfree(text);
	return length;
}

static ssize_t descriptor_read(struct kiocb *iocb, struct iov_iter *to)
{
	struct mutex_proxy_context *context = iocb->ki_filp->private_data;
	ssize_t result;

	do {
		if (!readable(context)) {
			if (iocb->ki_filp->f_flags & O_NONBLOCK)
				return -EAGAIN;
			result = wait_event_interruptible(context->wait, readable(context));
			if (result)
				return result;
		}
		if (mutex_lock_interruptible(&context->reading))
			return -ERESTARTSYS;
		result = read_snapshot(context, to);
		mutex_unlock(&context->reading);
	} while (!result);
	return result;
}

static ssize_t descriptor_write(struct kiocb *iocb, struct iov_iter *from)
{
	struct mutex_proxy_context *context = iocb->ki_filp->private_data;
	size_t length = iov_iter_count(from);
	ssize_t result;
	char *text;

	if (!length)
		return 0;
	if (length > MUTEX_PROXY_CONFIG_MAX)
		return -E2BIG;
	text = kvmalloc(length, GFP_KERNEL);
	if (!text)
		return -ENOMEM;
	if (copy_from_iter_full(text, length, from))
		result = mutex_proxy_config_set(context, text, length) ?: length;
	else
		result = -EFAULT;
	kvfree_sensitive(text, length);
	return result;
}

static __poll_t descriptor_poll(struct file *file, poll_table *table)
{
	struct mutex_proxy_context *context = file->private_data;
	__poll_t events = EPOLLOUT | EPOLLWRNORM;

	poll_wait(file, &context->wait, table);
	if (readable(context))
		events |= EPOLLIN | EPOLLRDNORM;
	return events;
}

static void descriptor_show(struct seq_file *seq, struct file *file)
{
	char *text = kmalloc(MUTEX_PROXY_SUMMARY_MAX, GFP_KERNEL);

	if (!text)
		return;
	seq_write(seq, text, mutex_proxy_snapshot(file->private_data, text, MUTEX_PROXY_SUMMARY_MAX));
	kfree(text);
}

static int descriptor_release(struct inode *inode, struct file *file)
{
	mutex_proxy_context_close(file->private_data);
	return 0;
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.read_iter = descriptor_read,
	.write_iter = descriptor_write,
	.poll = descriptor_poll,
	.unlocked_ioctl = mutex_proxy_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.show_fdinfo = descriptor_show,
	.release = descriptor_release,
};

/* Takes over the caller's reference when it succeeds. */
struct file *mutex_proxy_descriptor(struct mutex_proxy_context *context)
{
	unsigned int nonblock = context->flags & MUTEX_PROXY_NONBLOCK ? O_NONBLOCK : 0;
	struct file *file = anon_inode_getfile("[mutex_proxy]", &operations, context, O_RDWR | nonblock);

	if (!IS_ERR(file))
		stream_open(file_inode(file), file);
	return file;
}
