/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
 *
 * A PF with a driver that is busy or late, and with counters of its VFs, for tests. lab/netdevsim.py includes
 * this file in netdevsim's netdev.c. Module parameters, which are writable at any time, enable the faults.
 * The kernel calls these functions under the RTNL lock.
 */

static int refusals, refusal = EBUSY, late_ms;
module_param(refusals, int, 0600);
MODULE_PARM_DESC(refusals, "number of changes to VFs that are refused");
module_param(refusal, int, 0600);
MODULE_PARM_DESC(refusal, "errno of a refusal");
module_param(late_ms, int, 0600);
MODULE_PARM_DESC(late_ms, "milliseconds for which a changed VF still shows its old settings");

static struct {
	struct nsim_vf_config old;
	unsigned long until;
} faulty_vfs[256];

static struct nsim_vf_config *faulty_vf(struct net_device *dev, int vf)
{
	struct netdevsim *ns = netdev_priv(dev);
	unsigned int vfs = min_t(unsigned int, nsim_dev_get_vfs(ns->nsim_dev), ARRAY_SIZE(faulty_vfs));

	return vf >= 0 && vf < vfs ? &ns->nsim_dev->vfconfigs[vf] : NULL;
}

static bool faulty_is_late(int vf)
{
	return faulty_vfs[vf].until && time_before(jiffies, faulty_vfs[vf].until);
}

static int faulty_change(struct net_device *dev, int vf)
{
	struct nsim_vf_config *config = faulty_vf(dev, vf);

	if (refusals > 0) {
		refusals--;
		return -refusal;
	}
	if (config && late_ms) {
		if (!faulty_is_late(vf))
			faulty_vfs[vf].old = *config;
		faulty_vfs[vf].until = jiffies + msecs_to_jiffies(late_ms);
	}
	return 0;
}

static int faulty_set_vf_mac(struct net_device *dev, int vf, u8 *mac)
{
	return faulty_change(dev, vf) ?: nsim_set_vf_mac(dev, vf, mac);
}

static int faulty_set_vf_vlan(struct net_device *dev, int vf, u16 vlan, u8 qos, __be16 proto)
{
	return faulty_change(dev, vf) ?: nsim_set_vf_vlan(dev, vf, vlan, qos, proto);
}

static int faulty_set_vf_rate(struct net_device *dev, int vf, int min, int max)
{
	return faulty_change(dev, vf) ?: nsim_set_vf_rate(dev, vf, min, max);
}

static int faulty_set_vf_spoofchk(struct net_device *dev, int vf, bool on)
{
	return faulty_change(dev, vf) ?: nsim_set_vf_spoofchk(dev, vf, on);
}

static int faulty_set_vf_trust(struct net_device *dev, int vf, bool on)
{
	return faulty_change(dev, vf) ?: nsim_set_vf_trust(dev, vf, on);
}

static int faulty_set_vf_link_state(struct net_device *dev, int vf, int state)
{
	return faulty_change(dev, vf) ?: nsim_set_vf_link_state(dev, vf, state);
}

static int faulty_get_vf_config(struct net_device *dev, int vf, struct ifla_vf_info *info)
{
	struct nsim_vf_config *config = faulty_vf(dev, vf), now;
	int answer;

	if (!config || !faulty_is_late(vf))
		return nsim_get_vf_config(dev, vf, info);
	now = *config;
	*config = faulty_vfs[vf].old;
	answer = nsim_get_vf_config(dev, vf, info);
	*config = now;
	return answer;
}

static int faulty_get_vf_stats(struct net_device *dev, int vf, struct ifla_vf_stats *stats)
{
	stats->rx_packets = 1000 + vf;
	stats->tx_packets = 2000 + vf;
	stats->rx_bytes = 3000 + vf;
	stats->tx_bytes = 4000 + vf;
	stats->rx_dropped = 5000 + vf;
	stats->tx_dropped = 6000 + vf;
	return 0;
}
